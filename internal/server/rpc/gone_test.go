package rpc_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/server/rpc"
	"github.com/authsvc/authsvc/internal/service"
)

// lost is a sign-in whose store fails as the test says.
type lost func(ctx context.Context) error

func (l lost) Login(ctx context.Context, _ service.LoginRequest) (service.Issued, error) {
	return service.Issued{}, l(ctx)
}

// handlers takes a service's handlers, to be called without a wire.
type handlers map[string]func(ctx context.Context, dec func(any) error) (any, error)

func (h handlers) RegisterService(desc *grpc.ServiceDesc, impl any) {
	for _, d := range desc.Methods {
		h["/"+desc.ServiceName+"/"+d.MethodName] = func(ctx context.Context, dec func(any) error) (any, error) {
			return d.Handler(impl, ctx, dec, nil)
		}
	}
}

// TestACallerWhoGoesAwayIsNoFailureOfTheStore: an alert on lost calls must not be anybody's to ring.
func TestACallerWhoGoesAwayIsNoFailureOfTheStore(t *testing.T) {
	t.Parallel()
	away := func(err error) error {
		return fault.Wrap(err, fault.Unavailable, fault.StoreUnavailable, "the database did not answer in time")
	}
	for _, tt := range []struct {
		name   string
		leaves bool
		fails  error
		want   codes.Code
		logged bool
	}{
		{"the caller went away while the store was asked", true, away(context.Canceled), codes.Canceled, false},
		{"the twin: the store gave up and the caller waits", false, away(context.Canceled), codes.Unavailable, true},
		{"the store's own time ran out and then the caller went away", true, away(context.DeadlineExceeded), codes.Unavailable, true},
		{"what was decided is said, whether anybody listens or not", true, fault.New(fault.Unauthenticated, fault.RefreshReused, "used"), codes.Unauthenticated, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			s := serve(t, func(o *rpc.Options) {
				o.SignIn = lost(func(context.Context) error {
					if tt.leaves {
						leave()
					}
					return tt.fails
				})
			})
			all := handlers{}
			s.door.Register(all)
			_, err := all[authsvcv1.AuthService_Login_FullMethodName](ctx, func(any) error { return nil })
			if got := status.Code(err); got != tt.want {
				t.Errorf("answered %v, want %v", err, tt.want)
			}
			if got := strings.Contains(s.log.String(), "call failed"); got != tt.logged {
				t.Errorf("logged as a failure: %v, want %v", got, tt.logged)
			}
		})
	}
}
