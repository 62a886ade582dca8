package app

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"

	"github.com/authsvc/authsvc/internal/config"
)

// Meter is what counts events, for tests of what an operator sees.
type Meter = metrics

// NewMeter makes one, with the handler that shows it.
func NewMeter() (*Meter, http.Handler, error) {
	m, err := newMetrics()
	if err != nil {
		return nil, nil, err
	}
	return m, m.handler, nil
}

// Sweeping deletes what is over until ctx ends, for tests of whether it keeps up.
func Sweeping(ctx context.Context, logger *slog.Logger, one func(ctx context.Context, limit int) (int, error)) error {
	return sweeping(ctx, logger, one)
}

// TLSConfig is what a listener with this pair serves.
func TLSConfig(c config.TLS, logger *slog.Logger) (*tls.Config, error) { return tlsConfig(c, logger) }

// ErrorLog is what net/http is given to log by.
func ErrorLog(logger *slog.Logger) *log.Logger { return errorLog(logger) }

// Following reads the clients until ctx ends.
func Following(ctx context.Context, logger *slog.Logger, refresh func(context.Context) error) error {
	return following(ctx, logger, refresh)
}

// ListenSocket opens the operators' socket.
func ListenSocket(path string) (net.Listener, error) {
	s, err := listenSocket(path)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// DialSocket connects to it.
func DialSocket(ctx context.Context, path string) (net.Conn, error) { return dialSocket(ctx, path) }

// Admits says who may ask a server that runs as own.
func Admits(uid, own int) bool { return admits(uid, own) }

// PeerUID gives the user who connected.
func PeerUID(c *net.UnixConn) (int, error) { return peerUID(c) }

// Vouched says whose word a command takes for the server's.
func Vouched(uid, own, database int) bool { return vouched(uid, own, database) }

// VersionOf names the release of a build.
func VersionOf(info *debug.BuildInfo) string { return versionOf(info) }

// Alone is alone.
func Alone(c config.Database, http ...string) (io.Closer, error) { return alone(c, http...) }
