//go:build !unix

package rpc

import "net"

// onReady gives the meter as it is: how to wait for what comes without memory for it is not known here.
func onReady(m *meter) net.Conn { return m }
