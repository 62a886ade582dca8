package guard

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"net"
	"net/url"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// dial checks the options and gives what a connection is made with. The feed carries keys, so whoever forges it owns the
// verifier: TLS, or an address that no one else can answer on, or the word that it does not matter.
func (o *FeedOptions) dial() ([]grpc.DialOption, error) {
	host, port, err := net.SplitHostPort(o.Target)
	switch {
	case err != nil || host == "" || port == "" || strings.ContainsAny(host, "/@"):
		return nil, errors.New("guard: FeedOptions.Target is not host:port")
	case o.Issuer == "":
		return nil, errors.New("guard: FeedOptions.Issuer is required")
	case o.ClientID == "" || o.ClientSecret == "":
		return nil, errors.New("guard: FeedOptions.ClientID and ClientSecret are required")
	case o.Insecure && o.TLS != nil:
		return nil, errors.New("guard: FeedOptions.Insecure excludes FeedOptions.TLS")
	}
	// RFC 6749 section 2.3.1: both parts are form-encoded first.
	userPass := url.QueryEscape(o.ClientID) + ":" + url.QueryEscape(o.ClientSecret)
	basic := basicCredentials{value: "Basic " + base64.StdEncoding.EncodeToString([]byte(userPass))}
	var transport credentials.TransportCredentials
	switch {
	case o.TLS != nil:
		transport = credentials.NewTLS(o.TLS.Clone())
	case o.Insecure || loopback(host):
		transport = insecure.NewCredentials()
		basic.plain = true
	default:
		transport = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(transport), grpc.WithPerRPCCredentials(basic), grpc.WithDisableServiceConfig(),
		grpc.WithUserAgent("authsvc-guard"), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageLimit)),
		// A window that fits itself to the line is measured by a ping for each change, which costs both ends more than the change.
		grpc.WithStaticStreamWindowSize(windowSize), grpc.WithStaticConnWindowSize(windowSize),
	}
	if basic.plain && !o.Insecure {
		dial = append(dial, grpc.WithContextDialer(dialLoopback))
	}
	return dial, nil
}

// dialLoopback reaches this machine alone: a name may lead elsewhere, and what goes without TLS must not.
func dialLoopback(ctx context.Context, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if to, ok := conn.RemoteAddr().(*net.TCPAddr); !ok || !to.IP.IsLoopback() {
		_ = conn.Close() // nothing was said on it
		return nil, errors.New("guard: without TLS only a loopback address is spoken to")
	}
	return conn, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// basicCredentials are HTTP Basic (RFC 7617).
type basicCredentials struct {
	value string
	plain bool // the connection may be without TLS
}

func (b basicCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": b.value}, nil
}

func (b basicCredentials) RequireTransportSecurity() bool { return !b.plain }
