package rpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
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
		{"the twin: half of what it may send at once", 2500, true},
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

// TestG11WhatAProxysCallersTakeBackIsNoFlood gives a connection bursts of frames that ask for nothing, as many as it has
// streams, for ten seconds. A proxy sends its resets so while the service is slow and the patience of all its callers ends.
func TestG11WhatAProxysCallersTakeBackIsNoFlood(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		every time.Duration
		lives bool
	}{
		{"the twin: the callers of a proxy give up after a tenth of a second", 100 * time.Millisecond, true},
		{"G11 rapid reset: every stream is taken back within ten milliseconds", 10 * time.Millisecond, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := rpc.NewServer(nil)
				l := bufconn.Listen(64 << 10)
				served := make(chan error, 1)
				go func() { served <- server.Serve(l) }()
				conn := must(l.DialContext(t.Context()))(t)
				pong := make(chan bool, 1)
				go answered(conn, pong)
				_, err := io.WriteString(conn, http2.ClientPreface)
				f := http2.NewFramer(conn, nil)
				err = errors.Join(err, f.WriteSettings())
				for start := time.Now(); time.Since(start) < 10*time.Second && err == nil; <-time.After(tt.every) {
					for range 128 {
						if err == nil {
							err = f.WriteRSTStream(1, http2.ErrCodeCancel)
						}
					}
				}
				if err == nil {
					err = f.WritePing(false, [8]byte{1})
				}
				if lives := <-pong; lives != tt.lives || lives != (err == nil) {
					t.Errorf("the connection lives: %v (%v), want %v", lives, err, tt.lives)
				}
				conn.Close()
				server.Stop()
				<-served
			})
		})
	}
}

// TestR58ACallHasATimeAlthoughItsCallerGivesItNone: a call that never comes whole would hold what came of it for as long as
// the connection lives. A watch of the health is meant to last.
func TestR58ACallHasATimeAlthoughItsCallerGivesItNone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, path string
		after      time.Duration
		want       codes.Code // how it has ended by then; OK: it has not
	}{
		{"R58 a login of which only the beginning comes", "/authsvc.v1.AuthService/Login", 2 * time.Minute, codes.DeadlineExceeded},
		{"the twin: a watch of the health", "/grpc.health.v1.Health/Watch", 2 * time.Minute, codes.OK},
		{"R58 a watch of the health that outlives its connection's age", "/grpc.health.v1.Health/Watch", time.Hour, codes.Canceled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := rpc.NewServer(nil)
				authsvcv1.RegisterAuthServiceServer(server, authsvcv1.UnimplementedAuthServiceServer{})
				healthv1.RegisterHealthServer(server, health.NewServer())
				l := bufconn.Listen(64 << 10)
				served := make(chan error, 1)
				go func() { served <- server.Serve(l) }()
				conn := must(grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
					grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) })))(t)
				ctx, stop := context.WithCancel(t.Context())
				stream := must(conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, tt.path))(t)
				if strings.HasSuffix(tt.path, "/Watch") {
					if err := errors.Join(stream.SendMsg(&healthv1.HealthCheckRequest{}), stream.CloseSend(), stream.RecvMsg(&healthv1.HealthCheckResponse{})); err != nil {
						t.Error(err)
					}
				}
				ended := make(chan error, 1)
				go func() { ended <- stream.RecvMsg(&healthv1.HealthCheckResponse{}) }()
				select {
				case err := <-ended:
					if status.Code(err) != tt.want {
						t.Errorf("it ended: %v", err)
					}
				case <-time.After(tt.after):
					if tt.want != codes.OK {
						t.Errorf("after %v it is still held", tt.after)
					}
				}
				stop()
				conn.Close()
				server.Stop()
				<-served
			})
		})
	}
}
