package app

import (
	"maps"
	"net/http"

	"github.com/authsvc/authsvc/internal/server/extauthz"
	"github.com/authsvc/authsvc/internal/server/rpc"
)

// openToProxies puts the door for reverse proxies on the gRPC server, and its routes beside those given, where the configuration
// names an audience for it.
func (a *App) openToProxies(door *rpc.Door, routes map[string]http.Handler) error {
	if len(a.cfg.ForwardAuth.Audiences) == 0 {
		return nil
	}
	proxies, err := extauthz.New(extauthz.Options{Config: a.cfg.ForwardAuth, Issuer: a.cfg.Issuer, Keys: a.ring, Revocations: a.list,
		Fresh: a.tail.Fresh, Status: rpc.StatusOf, Observe: a.meter.proxied, Logger: a.log, Now: a.storeNow})
	if err != nil {
		return err
	}
	proxies.Register(door.Open(a.grpc))
	maps.Copy(routes, proxies.Routes())
	return nil
}
