package app_test

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/authsvc/authsvc/internal/app"
)

// full is a listener of a process that has no files left, and then ends.
type full struct {
	net.Listener
	times int
}

func (f *full) Accept() (net.Conn, error) {
	if f.times--; f.times < 0 {
		return nil, net.ErrClosed
	}
	return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
}

func (*full) Close() error { return nil }

// TestAListenerThatTakesNobodyInSaysSo: out of files, net/http tries again and again without an end, and with it the probes.
func TestAListenerThatTakesNobodyInSaysSo(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelInfo}))
	server := &http.Server{ErrorLog: app.ErrorLog(logger)}
	server.ErrorLog.Print("http: TLS handshake error from 192.0.2.7:4711: EOF") // the twin: a stranger's noise
	if said.Len() > 0 {
		t.Errorf("of a stranger's handshake: %s", said.String())
	}
	if err := server.Serve(&full{times: 1}); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if !strings.Contains(said.String(), "level=ERROR") || !strings.Contains(said.String(), "too many open files") {
		t.Errorf("without files: %q", said.String())
	}
}
