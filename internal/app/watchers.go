package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/authsvc/authsvc/gen/authsvc/admin/v1"
	"github.com/authsvc/authsvc/internal/config"
	"github.com/authsvc/authsvc/internal/server/rpc"
)

// Watcher is one open stream of a server's trust feed, as the command line shows it: what the server sent, which a process that is
// stopped may not have read yet.
type Watcher struct {
	Address   string    `json:"address,omitempty"` // after the trusted-proxy rule
	Client    string    `json:"client_id"`
	StartedAt time.Time `json:"start_time"`
	Position  *int64    `json:"position,omitempty"` // the row of the revocation log up to which it has everything; nil before its snapshot is whole
	Age       string    `json:"age,omitempty"`      // of its knowledge by the last heartbeat; empty before the first
	Kids      []string  `json:"kids"`
}

// Holding says which of one server's watchers hold a key. Services that poll the key set over HTTP are not among them.
type Holding struct {
	Watchers int       `json:"watchers"`
	Holding  int       `json:"holding"`
	Lacking  []Watcher `json:"lacking"`
	Unknown  string    `json:"unknown,omitempty"` // why it is not known, where no server could be asked
}

// Watchers asks the running server of an installation who follows its trust feed. It opens no store.
func Watchers(ctx context.Context, o AdminOptions) ([]Watcher, error) {
	cfg, err := LoadConfig(o)
	if err != nil {
		return nil, err
	}
	return askWatchers(ctx, cfg)
}

// holding looks for a key among the watchers that a server named, or gives why it named none.
func holding(kid string, watchers []Watcher, err error) *Holding {
	h := &Holding{Watchers: len(watchers), Lacking: []Watcher{}}
	if err != nil {
		h.Unknown = err.Error()
	}
	for _, w := range watchers {
		if slices.Contains(w.Kids, kid) {
			h.Holding++
		} else {
			h.Lacking = append(h.Lacking, w)
		}
	}
	return h
}

// askFor bounds how long a server may take to answer on its socket.
const askFor = 5 * time.Second

// askWatchers reads the list from the server of an installation, page by page.
func askWatchers(ctx context.Context, cfg config.Config) (all []Watcher, err error) {
	path := cfg.Admin.Socket
	if path == "" {
		return nil, errors.New("the server has no admin socket: set admin.socket and start it anew")
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	conn, err := dialAdmin(ctx, path, filepath.Dir(cfg.Database.Path))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	client, request := adminv1.NewWatcherServiceClient(conn), &adminv1.ListWatchersRequest{}
	all = []Watcher{}
	for {
		page, err := client.ListWatchers(ctx, request)
		if err != nil {
			return nil, fmt.Errorf("the server at the admin socket %s does not answer: %s", path, status.Convert(err).Message())
		}
		for _, w := range page.GetWatchers() {
			all = append(all, viewWatcher(w))
		}
		if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
			return all, nil
		}
	}
}

// dialAdmin connects before it makes a client, so that its error says what is wrong with the socket. Whoever else listens there
// is asked nothing: he would say which keys may sign.
func dialAdmin(ctx context.Context, path, database string) (*grpc.ClientConn, error) {
	c, err := dialSocket(ctx, path)
	var why syscall.Errno
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("no server answers at the admin socket %s", path)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("the admin socket %s is for the server's own user and root alone", path)
	case errors.As(err, &why):
		return nil, fmt.Errorf("the admin socket %s: %w", path, why)
	case err != nil:
		return nil, err
	}
	if err := meant(c, path, database); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	once := make(chan net.Conn, 1)
	once <- c
	conn, err := grpc.NewClient("passthrough:///admin", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(rpc.MaxAdminAnswer)),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, errors.New("it ended the connection")
			}
		}))
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return conn, nil
}

// meant refuses a connection to a process that is not the server's user's.
func meant(c net.Conn, path, database string) error {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("%s is not a Unix socket", path)
	}
	uid, err := peerUID(u)
	if err != nil {
		return fmt.Errorf("the admin socket %s: %w", path, err)
	}
	owner := -1
	if info, err := os.Stat(database); err == nil {
		owner = ownerOf(info)
	}
	if !vouched(uid, os.Geteuid(), owner) {
		return fmt.Errorf("who listens at the admin socket %s is user %d, not this one, root, or the owner of the database: it is not asked", path, uid)
	}
	return nil
}

func viewWatcher(w *adminv1.Watcher) Watcher {
	v := Watcher{Address: w.GetAddress(), Client: w.GetClientId(), StartedAt: utc(w.GetStartTime().AsTime()), Position: w.Position, Kids: list(w.GetKids())}
	if w.GetAge() != nil {
		v.Age = w.GetAge().AsDuration().Round(time.Millisecond).String()
	}
	return v
}
