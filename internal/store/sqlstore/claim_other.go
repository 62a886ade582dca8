//go:build !unix

package sqlstore

import "fmt"

// claimBytes cannot tell here who has the file.
func claimBytes(path string) (func() error, error) {
	return nil, fmt.Errorf("%w (%s): move it away", ErrDamaged, path)
}
