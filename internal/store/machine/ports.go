// Package machine knows what tests with real servers must know of the machine that they run on: its free ports, and when it stands still.
package machine

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// The ports to choose from lie below those that Linux gives to outgoing connections (net.ipv4.ip_local_port_range, from 32768 on): a server that
// a test stops for a while would otherwise lose its port to any connection that somebody makes meanwhile, and could not be started again.
const lowest, count = 10000, 20000

// FreePort gives a port of 127.0.0.1 that nobody listens on just now. Another process may still take it first: whoever starts a server on
// it tries another one then.
func FreePort() (port int, err error) {
	for range 100 {
		port = lowest + rand.N(count)
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, err
}
