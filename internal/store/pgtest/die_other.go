//go:build !linux

package pgtest

import "syscall"

func dieWithUs(*syscall.SysProcAttr) {}
