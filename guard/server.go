package guard

import (
	"slices"

	"google.golang.org/grpc"
)

// ServerOptions are for grpc.NewServer: both interceptors, so that no stream is served past its rule because only the unary one was
// named. They stand behind one that grpc.UnaryInterceptor or grpc.StreamInterceptor names, and in the order of the options with
// others that are chained.
func (g *Guard) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(g.UnaryServerInterceptor()), grpc.ChainStreamInterceptor(g.StreamServerInterceptor())}
}

// Unruled gives the full names, sorted, of the methods that a server (a *grpc.Server, after its services were registered) serves and
// Options.Rules does not name. Options.Default answers for those, which denies unless it was told otherwise; a service asks in a
// test or at its start which it has forgotten.
func (g *Guard) Unruled(s interface {
	GetServiceInfo() map[string]grpc.ServiceInfo
}) []string {
	var names []string
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			name := "/" + service + "/" + m.Name
			if _, ok := g.rules[name]; !ok {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}
