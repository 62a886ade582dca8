package rpc

import "google.golang.org/grpc"

// Open gives a registrar for the services of other doors, on the wire: it puts their methods into the pipeline (request id, log,
// metrics, the limit of a message, the catching of panics) with the rule that anybody may call, for they judge for
// themselves. Their streams have no rule and are refused. It is for the time before the server serves.
func (d *Door) Open(r grpc.ServiceRegistrar) grpc.ServiceRegistrar {
	return opened{piped{r, d, true}}
}

type opened struct{ piped }

// RegisterService opens, wraps and registers.
func (o opened) RegisterService(desc *grpc.ServiceDesc, impl any) {
	for _, m := range desc.Methods {
		o.d.rules["/"+desc.ServiceName+"/"+m.MethodName] = &rule{open: true}
	}
	o.piped.RegisterService(desc, impl)
}
