package rpc

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// Open gives a registrar for the services of other doors, on the wire: it puts their methods into the pipeline (request id, log,
// metrics, the limit of a message, the catching of panics) with the rule that anybody may call, for they judge for
// themselves. A request may be a proto message, or whatever has UnmarshalBinary. Their streams have no rule and are refused. It
// is for the time before the server serves.
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

// decode reads a request, or has it read itself, which costs a tenth where most of a large message is of no interest.
func decode(data mem.BufferSlice, request any) error {
	own, ok := request.(interface{ UnmarshalBinary(data []byte) error })
	if !ok {
		return encoding.GetCodecV2(proto.Name).Unmarshal(data, request)
	}
	whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer whole.Free()
	return own.UnmarshalBinary(whole.ReadOnlyData())
}
