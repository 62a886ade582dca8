package redistest

import "syscall"

// dieWithUs lets the server end with the tests, however they end.
func dieWithUs(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }
