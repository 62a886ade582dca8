package faults

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// serviceEnv makes this test binary a verifying service instead: a process that can be stopped and killed.
const serviceEnv = "FAULTS_SERVICE"

// The methods of a verifying service. The two differ in their rule's limit alone.
const (
	ordinaryCall  = "/faults.Shop/Ordinary"
	sensitiveCall = "/faults.Shop/Sensitive"
)

func rules() map[string]guard.Rule {
	return map[string]guard.Rule{ordinaryCall: {Authenticated: true}, sensitiveCall: {Authenticated: true, Sensitive: true}}
}

// verifier is what a verifying service is made of.
type verifier struct {
	feed  *guard.Feed
	guard *guard.Guard
}

func newVerifier(o guard.FeedOptions) (*verifier, error) {
	feed, err := guard.NewFeed(o)
	if err != nil {
		return nil, err
	}
	v, err := verify.New(verify.Options{Issuer: o.Issuer, Audiences: []string{audience}, Keys: feed, Revocations: feed, Now: feed.Now})
	if err != nil {
		return nil, err
	}
	g, err := guard.New(guard.Options{Verifier: v, Feed: feed, Rules: rules()})
	return &verifier{feed, g}, err
}

// verdict is what a service says about a token, when, and by knowledge of which dates: what it was by is not older than least and not
// younger than most.
type verdict struct {
	Reason       string // "" where it is accepted
	Began, Ended int64
	Least, Most  int64
	Away         string // why there is none
}

func (v *verifier) judge(ctx context.Context, token string, sensitive bool) (a verdict) {
	rule := rules()[ordinaryCall]
	if sensitive {
		rule = rules()[sensitiveCall]
	}
	a.Began = now()
	a.Least = a.Began - int64(v.feed.Status().Age)
	_, refusal := v.guard.Judge(ctx, rule, []string{"Bearer " + token})
	age := int64(v.feed.Status().Age)
	a.Ended = now()
	if a.Most = a.Ended - age; refusal != nil {
		a.Reason = reasonOf(refusal.Status)
	}
	return a
}

func reasonOf(s *status.Status) string {
	for _, d := range s.Details() {
		if d, ok := d.(*errdetails.ErrorInfo); ok {
			return d.GetReason()
		}
	}
	return fmt.Sprintf("%s: %s", s.Code(), s.Message())
}

// told is what a service in a process of its own reads from its standard input; it writes its address.
type told struct{ Target, ClientID, ClientSecret string }

// serveCalls is the whole of that process. It ends with its input.
func serveCalls(in io.Reader, out io.Writer) error {
	var o told
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return err
	}
	v, err := newVerifier(guard.FeedOptions{Target: o.Target, Issuer: issuer, ClientID: o.ClientID, ClientSecret: o.ClientSecret,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	desc := &grpc.ServiceDesc{ServiceName: "faults.Shop", HandlerType: (*any)(nil)}
	for _, name := range []string{"Ordinary", "Sensitive"} {
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: name,
			Handler: func(_ any, ctx context.Context, read func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
				in := new(emptypb.Empty)
				if err := read(in); err != nil {
					return nil, err
				}
				return intercept(ctx, in, &grpc.UnaryServerInfo{FullMethod: "/faults.Shop/" + name}, func(context.Context, any) (any, error) { return in, nil })
			}})
	}
	server := grpc.NewServer(append([]grpc.ServerOption{grpc.ChainUnaryInterceptor(dated(v.feed))}, v.guard.ServerOptions()...)...)
	server.RegisterService(desc, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ended := make(chan error, 3)
	go func() { ended <- v.feed.Run(context.Background()) }()
	go func() { ended <- server.Serve(listener) }()
	if _, err := fmt.Fprintln(out, listener.Addr()); err != nil {
		return err
	}
	go func() { _, err := io.Copy(io.Discard, in); ended <- err }()
	return <-ended
}

// dated says in the trailer of each call when it began and ended, and the dates of the knowledge.
func dated(feed *guard.Feed) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		began := now()
		least := began - int64(feed.Status().Age)
		out, err := handle(ctx, in)
		age := int64(feed.Status().Age)
		ended := now()
		trailer := metadata.MD{}
		for name, at := range map[string]int64{"began": began, "ended": ended, "least": least, "most": ended - age} {
			trailer.Set(name, strconv.FormatInt(at, 10))
		}
		return out, errors.Join(grpc.SetTrailer(ctx, trailer), err)
	}
}

// service is a verifying service as its callers see it.
type service struct {
	name    string
	replica int // the number of the one that it is attached to; -1 where nginx chooses
	here    *verifier
	said    *speech

	mu    sync.Mutex // of what follows, which a service in a process of its own has
	child *process
	stdin io.Closer
	conn  *grpc.ClientConn
}

// attach starts the services, and waits until they know everything.
func (s *system) attach(t *testing.T) error {
	for _, r := range s.replicas {
		if err := s.attachHere(t, fmt.Sprintf("at replica %d", r.number), r.grpc.address(), r.number); err != nil {
			return err
		}
	}
	if err := s.attachHere(t, "behind nginx", s.grpc, -1); err != nil {
		return err
	}
	apart := &service{name: "apart", replica: -1, said: &speech{}}
	t.Cleanup(func() { _ = apart.stop() })
	if err := apart.run(s); err != nil {
		return err
	}
	s.services = append(s.services, apart)
	for _, v := range s.services {
		if v.here == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		err := v.here.feed.Ready(ctx)
		cancel()
		if err != nil {
			return fmt.Errorf("the service %s: %w\n%s", v.name, err, v.said)
		}
	}
	return nil
}

func (s *system) attachHere(t *testing.T, name, target string, replica int) error {
	v := &service{name: name, replica: replica, said: &speech{}}
	var err error
	v.here, err = newVerifier(guard.FeedOptions{Target: target, Issuer: issuer, ClientID: s.serviceID, ClientSecret: s.serviceSecret,
		Logger: slog.New(slog.NewTextHandler(v.said, nil))})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = v.here.feed.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	s.services = append(s.services, v)
	return nil
}

// run starts the service's process.
func (v *service) run(s *system) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = environment(serviceEnv + "=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	child, err := launch(cmd, v.said)
	if err != nil {
		return err
	}
	address := ""
	err = json.NewEncoder(in).Encode(told{s.grpc, s.serviceID, s.serviceSecret})
	if err == nil {
		address, err = bufio.NewReader(out).ReadString('\n')
	}
	if err != nil {
		return errors.Join(fmt.Errorf("the service %s does not start: %w\n%s", v.name, err, v.said), child.kill())
	}
	conn, err := grpc.NewClient(address[:len(address)-1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	v.mu.Lock()
	v.child, v.stdin, v.conn = child, in, conn
	v.mu.Unlock()
	return err
}

func (v *service) stop() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.child == nil {
		return nil
	}
	err := errors.Join(v.conn.Close(), v.child.kill())
	_ = v.stdin.Close() // its end may have closed it
	return err
}

// ask makes one call.
func (v *service) ask(ctx context.Context, token string, sensitive bool) (a verdict) {
	if v.here != nil {
		return v.here.judge(ctx, token, sensitive)
	}
	v.mu.Lock()
	conn := v.conn
	v.mu.Unlock()
	method := ordinaryCall
	if sensitive {
		method = sensitiveCall
	}
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token), 3*time.Second)
	defer cancel()
	var trailer metadata.MD
	err := conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{}, grpc.Trailer(&trailer))
	for name, to := range map[string]*int64{"began": &a.Began, "ended": &a.Ended, "least": &a.Least, "most": &a.Most} {
		for _, text := range trailer.Get(name) {
			*to, _ = strconv.ParseInt(text, 10, 64)
		}
	}
	switch {
	case a.Began == 0:
		a.Away = fmt.Sprintf("no verdict: %v", err)
	case err != nil:
		a.Reason = reasonOf(status.Convert(err))
	}
	return a
}
