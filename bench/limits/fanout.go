package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// coalesce is how long what came waits for more to share its message, as in the trust feed.
const coalesce = 20 * time.Millisecond

// fanout is a bare grpc-go server of streams: what /limit/Tell brings is gathered and sent to all who have called /limit/Listen,
// as one message of the same bytes for all. Each stream has a goroutine and a queue, since a send waits for its reader and must
// hold up no other. Its first argument is how many bytes a message has before what was told. With a second, the URL of a PostgreSQL,
// what is told to one such server comes to all of them by its NOTIFY.
func fanout(args []string) error {
	head, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	debug.SetGCPercent(200) // as the service's
	f := &fan{head: head, listeners: map[chan frame]struct{}{}}
	f.tell = f.gather
	if len(args) > 1 {
		if f.tell, err = notified(args[1], f.gather); err != nil {
			return err
		}
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(frames{}))
	s.RegisterService(f.describe(), nil)
	go f.run()
	l, err := listen()
	if err != nil {
		return err
	}
	return s.Serve(l)
}

// frame is a message as it goes over the wire.
type frame []byte

// frames sends a frame as it is.
type frames struct{}

// Name implements encoding.CodecV2.
func (frames) Name() string { return proto.Name }

// Marshal implements encoding.CodecV2.
func (frames) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(frame); ok {
		return mem.BufferSlice{mem.SliceBuffer(f)}, nil
	}
	return encoding.GetCodecV2(proto.Name).Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (frames) Unmarshal(data mem.BufferSlice, v any) error {
	return encoding.GetCodecV2(proto.Name).Unmarshal(data, v)
}

type fan struct {
	head      int
	tell      func(in []byte)
	mu        sync.Mutex
	told      []byte
	sent      int
	listeners map[chan frame]struct{}
}

func (f *fan) describe() *grpc.ServiceDesc {
	unary := func(name string, answer func(in []byte) []byte) grpc.MethodDesc {
		return grpc.MethodDesc{MethodName: name, Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var in wrapperspb.BytesValue
			if err := decode(&in); err != nil {
				return nil, err
			}
			return wrapperspb.Bytes(answer(in.GetValue())), nil
		}}
	}
	return &grpc.ServiceDesc{ServiceName: "limit", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{
		unary("Tell", func(in []byte) []byte { f.tell(in); return nil }),
		unary("Sent", func([]byte) []byte { f.mu.Lock(); defer f.mu.Unlock(); return fmt.Append(nil, f.sent) }),
		unary("Listeners", func([]byte) []byte { f.mu.Lock(); defer f.mu.Unlock(); return fmt.Append(nil, len(f.listeners)) }),
		unary("Memory", func([]byte) []byte { return fmt.Append(nil, inUse()) }),
	}, Streams: []grpc.StreamDesc{{StreamName: "Listen", ServerStreams: true, Handler: f.listen}}}
}

// inUse is what the heap and the stacks hold after two collections, the second of which takes what pools held.
func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

func (f *fan) gather(in []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, in...)
}

// run hands out what was told, as often as the feed does.
func (f *fan) run() {
	for range time.Tick(coalesce) {
		f.mu.Lock()
		if len(f.told) > 0 {
			f.hand(append(make(frame, f.head, f.head+len(f.told)), f.told...))
		}
		f.told = f.told[:0]
		f.mu.Unlock()
	}
}

func (f *fan) hand(message frame) {
	f.sent++
	for queue := range f.listeners {
		select {
		case queue <- message:
		default: // it does not read
			delete(f.listeners, queue)
			close(queue)
		}
	}
}

func (f *fan) listen(_ any, stream grpc.ServerStream) error {
	if err := stream.RecvMsg(&wrapperspb.BytesValue{}); err != nil {
		return err
	}
	queue := make(chan frame, 64)
	f.mu.Lock()
	f.listeners[queue] = struct{}{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.listeners, queue)
	}()
	if err := stream.SendMsg(make(frame, f.head)); err != nil { // the sign that it listens
		return err
	}
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case message, open := <-queue:
			if !open {
				return errors.New("too slow")
			}
			if err := stream.SendMsg(message); err != nil {
				return err
			}
		}
	}
}
