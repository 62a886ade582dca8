package ports_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/authsvc/authsvc/test/ports"
)

func TestAPortIsForWhoIsToldOfIt(t *testing.T) {
	t.Parallel()
	at := fmt.Sprint("127.0.0.1:", ports.Hold(t))
	for range 3 {
		if conn, err := net.Dial("tcp", at); err == nil {
			t.Fatalf("somebody listens at %s: %v", at, conn)
		}
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", at) // the twin: while a server listens it is reached
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []interface{ Close() error }{server, conn, l} { // the server first, so that its end of the connection lingers
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	for range 1000 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if l.Addr().String() == at {
			t.Fatal("who asked for any port got the one that is held")
		}
	}
}
