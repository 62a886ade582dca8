//go:build unix

package sqlstore

import (
	"io/fs"
	"syscall"
)

// owner gives the uid of a file's owner.
func owner(info fs.FileInfo) (uid int, known bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(stat.Uid), true
}
