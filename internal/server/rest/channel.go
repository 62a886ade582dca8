package rest

import (
	"context"
	"fmt"
	"reflect"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Channel calls services in this process as a gRPC server would: the same handlers, without a socket and without
// encoding. It runs nothing around a handler, so what is registered brings its own policy, as the gRPC door's services do. It
// is a grpc.ServiceRegistrar and a grpc.ClientConnInterface. Unary only: the streams of a service are for gRPC, and are left
// out.
//
// Messages are handed over by shallow copy: a handler owns its request, and must make a new response for each call.
type Channel struct {
	methods  map[string]method
	services []string
}

type method struct {
	impl    any
	handler grpc.MethodHandler
}

var (
	_ grpc.ServiceRegistrar    = (*Channel)(nil)
	_ grpc.ClientConnInterface = (*Channel)(nil)
)

// NewChannel makes a Channel without services.
func NewChannel() *Channel { return &Channel{methods: make(map[string]method)} }

// RegisterService adds a service, before the first call. Like grpc.Server's it has no error to give: an implementation of
// the wrong type, or a service registered twice, is a mistake in the program and panics.
func (c *Channel) RegisterService(desc *grpc.ServiceDesc, impl any) {
	if want := reflect.TypeOf(desc.HandlerType).Elem(); impl == nil || !reflect.TypeOf(impl).Implements(want) {
		panic(fmt.Sprintf("rest: %T does not implement %s", impl, desc.ServiceName))
	}
	for i := range desc.Methods {
		full := "/" + desc.ServiceName + "/" + desc.Methods[i].MethodName
		if _, twice := c.methods[full]; twice {
			panic("rest: " + desc.ServiceName + " is registered twice")
		}
		c.methods[full] = method{impl: impl, handler: desc.Methods[i].Handler}
	}
	c.services = append(c.services, desc.ServiceName)
}

// Invoke calls one method by its full name. Errors are gRPC statuses. Where ctx comes from an HTTP request of this
// package's handler, the service sees that request's peer and metadata; otherwise it sees none. Outgoing metadata of ctx is
// never passed on.
func (c *Channel) Invoke(ctx context.Context, name string, args, reply any, opts ...grpc.CallOption) (err error) {
	m, ok := c.methods[name]
	if !ok {
		return status.Error(codes.Unimplemented, "unknown method")
	}
	stream := &transport{method: name}
	if in := inboundFrom(ctx); in != nil {
		in.reached = true
		ctx = in.incoming(ctx)
	}
	ctx = grpc.NewContextWithServerTransportStream(ctx, stream)
	err = c.call(ctx, m, args, reply)
	stream.deliver(opts)
	return err
}

func (c *Channel) call(ctx context.Context, m method, args, reply any) error {
	out, err := m.handler(m.impl, ctx, func(in any) error { return assign(in, args) }, nil)
	if err != nil {
		if _, ok := status.FromError(err); ok {
			return err
		}
		return status.FromContextError(err).Err()
	}
	return assign(reply, out)
}

// NewStream refuses: the channel is unary.
func (c *Channel) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "this channel has no streams")
}

// assign copies the message that src points to into dst. Nothing else uses src afterwards, so a shallow copy is enough.
func assign(dst, src any) error {
	d, s := reflect.ValueOf(dst), reflect.ValueOf(src)
	if d.Kind() != reflect.Pointer || s.Kind() != reflect.Pointer || d.Type() != s.Type() || d.IsNil() || s.IsNil() {
		return status.Errorf(codes.Internal, "cannot hand over %T as %T", src, dst)
	}
	d.Elem().Set(s.Elem())
	return nil
}

// transport is the server side of one call: where grpc.SetHeader and grpc.SetTrailer write.
type transport struct {
	method          string
	mu              sync.Mutex
	header, trailer metadata.MD
}

func (t *transport) Method() string { return t.method }

func (t *transport) SetHeader(md metadata.MD) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.header = metadata.Join(t.header, md)
	return nil
}

func (t *transport) SendHeader(md metadata.MD) error { return t.SetHeader(md) }

func (t *transport) SetTrailer(md metadata.MD) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trailer = metadata.Join(t.trailer, md)
	return nil
}

func (t *transport) deliver(opts []grpc.CallOption) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range opts {
		switch o := o.(type) {
		case grpc.HeaderCallOption:
			*o.HeaderAddr = t.header
		case grpc.TrailerCallOption:
			*o.TrailerAddr = t.trailer
		}
	}
}
