package rpc_test

import (
	"errors"
	"io"
	"net"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/test/bufconn"

	"github.com/authsvc/authsvc/internal/server/rpc"
)

// TestG11AConnectionMayAskForNothingSoOften counts how many frames that ask for nothing a connection gets through, whatever
// the pieces that they are read in.
func TestG11AConnectionMayAskForNothingSoOften(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		frames int
		lives  bool
	}{
		{"the twin: half of what it may send at once", 1000, true},
		{"G11 far more than it may send at once", 100_000, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := rpc.NewServer(nil)
			l := bufconn.Listen(1 << 10)
			go server.Serve(l)
			t.Cleanup(server.Stop)
			conn := must(l.DialContext(t.Context()))(t)
			t.Cleanup(func() { conn.Close() })
			pong := make(chan bool, 1)
			go answered(conn, pong)
			_, err := io.WriteString(conn, http2.ClientPreface)
			f := http2.NewFramer(conn, nil)
			err = errors.Join(err, f.WriteSettings())
			for i := 0; i < tt.frames && err == nil; i++ {
				// A payload of every length, so that headers come in every piece.
				err = f.WriteRawFrame(0xfa, 0, 0, make([]byte, i%23))
			}
			if err == nil {
				err = f.WritePing(false, [8]byte{1})
			}
			if lives := <-pong; lives != tt.lives || lives != (err == nil) {
				t.Errorf("the connection lives: %v (%v), want %v", lives, err, tt.lives)
			}
		})
	}
}

// answered waits for the answer to a ping, or for the end.
func answered(conn net.Conn, pong chan<- bool) {
	f := http2.NewFramer(nil, conn)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			pong <- false
			return
		}
		if p, ok := frame.(*http2.PingFrame); ok && p.IsAck() {
			pong <- true
			return
		}
	}
}
