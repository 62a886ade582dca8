//go:build !unix

package sqlstore

import "io/fs"

// owner says that files have no uid here.
func owner(fs.FileInfo) (uid int, known bool) { return 0, false }
