package rest

import (
	"crypto/tls"
	"net/http"
	"time"
)

// Limits of a connection. The header limit of net/http is MaxHeaderBytes and 4 KiB of its own on top.
const (
	maxHeader         = 16 << 10
	headerSlop        = 4 << 10
	maxStreams        = 128
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 30 * time.Second
	idleTimeout       = 2 * time.Minute
)

// NewServer gives a server for a public HTTP door with its limits set: a header list of 16 KiB, 128 streams a
// connection, and a time for each phase of a request. With tlsConfig it speaks HTTP/1.1 and HTTP/2 over TLS and the caller
// calls ServeTLS with empty file names; without it, HTTP/1.1 alone, never h2c.
func NewServer(handler http.Handler, tlsConfig *tls.Config) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(tlsConfig != nil)
	return &http.Server{
		Handler:                      patient(handler),
		ConnContext:                  withLine,
		TLSConfig:                    tlsConfig,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            readHeaderTimeout,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 readTimeout + MaxTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeader - headerSlop,
		Protocols:                    protocols,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
	}
}
