package rpc_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/authsvc/authsvc/gen/authsvc/admin/v1"
	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/server/rpc"
)

func TestA03AnEditedPageTokenOfTheWatchersIsRefused(t *testing.T) {
	t.Parallel()
	given := func() (*operators, string) {
		s, _ := written(t, nil)
		o := s.operators(t)
		s.seat(t, "")
		s.seat(t, "")
		o.await(t, "two watch", func(all []*adminv1.Watcher) bool { return len(all) == 2 })
		return o, must(o.ListWatchers(t.Context(), &adminv1.ListWatchersRequest{PageSize: 1}))(t).GetNextPageToken()
	}
	o, token := given()
	_, others := given()
	if page, err := o.ListWatchers(t.Context(), &adminv1.ListWatchersRequest{PageToken: token}); err != nil || len(page.GetWatchers()) != 1 {
		t.Errorf("the twin: as it was given: %v %v", page, err)
	}
	edited := []string{"next", "1", token + "A", token[1:], token + "=", token + "\n", "\n" + token, others, strings.Repeat("A", len(token))}
	for i := range token {
		next := byte('A')
		if token[i] == next {
			next = 'B'
		}
		edited = append(edited, token[:i]+string(next)+token[i+1:])
	}
	for _, text := range edited {
		if _, err := o.ListWatchers(t.Context(), &adminv1.ListWatchersRequest{PageToken: text}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q for %q: %v", text, token, err)
		}
	}
}

// TestWhoStaysIsListedOnceWhileOthersComeAndGo reads the pages one by one, with strangers coming and going between and meanwhile.
func TestWhoStaysIsListedOnceWhileOthersComeAndGo(t *testing.T) {
	t.Parallel()
	s, _ := written(t, nil)
	o := s.operators(t)
	sit := func(ctx context.Context) (leave func()) {
		ctx, cancel := context.WithCancel(ctx)
		begun, left := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(left)
			_ = s.feed.WatchWithout(ctx, "", func(m *authsvcv1.WatchTrustResponse) error {
				if m.GetSnapshot() != nil {
					close(begun)
				}
				return nil
			})
		}()
		<-begun
		return func() { cancel(); <-left }
	}
	const stay = 20
	stays := map[time.Time]int{}
	for range stay {
		leave := sit(t.Context())
		defer leave()
		defer sit(t.Context())() // between two that stay, so that pages begin after one that may have left
	}
	for i, w := range o.list(t) {
		if i%2 == 0 {
			stays[w.GetStartTime().AsTime()] = 0
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				sit(t.Context())()
			}
		})
	}
	for range 20 {
		for request := (&adminv1.ListWatchersRequest{PageSize: 3}); ; {
			page := must(o.ListWatchers(t.Context(), request))(t)
			for _, w := range page.GetWatchers() {
				if _, ok := stays[w.GetStartTime().AsTime()]; ok {
					stays[w.GetStartTime().AsTime()]++
				}
			}
			if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
				break
			}
		}
	}
	cancel()
	wg.Wait()
	for at, n := range stays {
		if n != 20 {
			t.Errorf("who came at %v is in %d of 20 lists", at, n)
		}
	}
	if len(stays) != stay {
		t.Errorf("%d stay", len(stays))
	}
}

// TestTheKidsOfAWatcherAreThoseThatItWasSent changes the keys at every moment of a stream at which it could make a difference.
func TestTheKidsOfAWatcherAreThoseThatItWasSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, p := written(t, func(o *rpc.HubOptions) { o.Every, o.Beat = 20*time.Millisecond, time.Second })
		o := s.operators(t)
		p.change(func() { p.keySet = set("k1") })
		resumed := p.add(3)
		kids := func(what string, want ...[]string) {
			t.Helper()
			synctest.Wait()
			all := o.list(t)
			if len(all) != len(want) {
				t.Fatalf("%s: %d watch", what, len(all))
			}
			for i := range want {
				if !slices.Equal(all[i].GetKids(), want[i]) {
					t.Errorf("%s: of watcher %d they are %v, want %v", what, i, all[i].GetKids(), want[i])
				}
			}
		}
		watch := func(cursor string) (next func() *authsvcv1.WatchTrustResponse, leave func()) {
			ctx, cancel := context.WithCancel(t.Context())
			sent, left := make(chan *authsvcv1.WatchTrustResponse), make(chan struct{})
			go func() {
				defer close(left)
				_ = s.feed.WatchWithout(ctx, cursor, func(m *authsvcv1.WatchTrustResponse) error {
					select {
					case sent <- m:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				})
			}()
			return func() *authsvcv1.WatchTrustResponse { synctest.Wait(); return <-sent }, func() { cancel(); <-left }
		}
		whole, leave := watch("")
		defer leave()
		kids("before its snapshot is taken", nil)
		p.change(func() { p.keySet = set("k1", "k2") })
		if m := whole(); m.GetSnapshot() == nil || string(m.GetSnapshot().GetJwks()) != set("k1") {
			t.Fatalf("first comes %v", m)
		}
		kids("the keys changed between the snapshot and the place among the others", []string{"k1"})
		if m := whole(); string(m.GetDelta().GetJwks()) != set("k1", "k2") {
			t.Fatalf("then comes %v", m)
		}
		kids("and were sent", []string{"k1", "k2"})
		if m := whole(); m.GetHeartbeat() == nil {
			t.Fatalf("then comes %v", m)
		}
		p.change(func() { p.keySet = set("k2", "k3") })
		again, leave := watch(resumed)
		defer leave()
		if m := again(); string(m.GetSnapshot().GetJwks()) != set("k2", "k3") || len(m.GetSnapshot().GetRevocations()) != 0 {
			t.Fatalf("who comes back gets %v", m)
		}
		kids("who comes back has the newest, and the other does not read", []string{"k1", "k2"}, []string{"k2", "k3"})
		for again().GetHeartbeat() == nil {
		}
		p.change(func() { p.keySet = set("k4") })
		for range 100 { // more than the queue of one who does not read holds
			p.add(1)
			time.Sleep(20 * time.Millisecond) // of the bubble's clock
			for again().GetDelta() == nil {
			}
		}
		if n := s.feed.Stats().Cut; n != 1 {
			t.Errorf("%d were cut off", n)
		}
		kids("one was cut off, and has yet to leave", []string{"k1", "k2"}, []string{"k4"})
	})
}

func TestD22AnAnswerThatIsNotReadHoldsUpNoEnd(t *testing.T) {
	t.Parallel()
	for _, reads := range []bool{false, true} {
		s, p := written(t, nil)
		kids := make([]string, 100)
		for i := range kids {
			kids[i] = strings.Repeat("k", 43)
		}
		p.change(func() { p.keySet = set(kids...) })
		o := s.operators(t)
		for range 40 {
			s.seat(t, "")
		}
		all := o.await(t, "all hold the keys", func(all []*adminv1.Watcher) bool {
			return len(all) == 40 && !slices.ContainsFunc(all, func(w *adminv1.Watcher) bool { return len(w.GetKids()) != len(kids) })
		})
		if n := proto.Size(&adminv1.ListWatchersResponse{Watchers: all}); n < 2*64<<10 {
			t.Fatalf("an answer of %d bytes fits into what a connection takes unread", n)
		}
		conn, _ := narrow(t, o.server)
		stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, adminv1.WatcherService_ListWatchers_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(stream.SendMsg(&adminv1.ListWatchersRequest{}), stream.CloseSend()); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil { // the answer has begun
			t.Fatal(err)
		}
		if reads {
			if err := stream.RecvMsg(&adminv1.ListWatchersResponse{}); err != nil {
				t.Errorf("the twin: one who reads: %v", err)
			}
		}
		o.server.Stop() // which would never return
		if !reads {
			if err := stream.RecvMsg(&adminv1.ListWatchersResponse{}); err == nil {
				t.Error("all of it came")
			}
		}
	}
}

func TestR58AConnectionToTheOperatorsListenerThatSaysNothingEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server, l := rpc.NewAdminServer(), bufconn.Listen(1<<20)
		go server.Serve(l)
		defer server.Stop()
		for _, tt := range []struct {
			name string
			says string
			ends time.Duration
		}{
			{"nothing at all", "", 10 * time.Second},
			{"half of a greeting", "PRI * HTTP", 10 * time.Second},
			{"a greeting, and then nothing", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 70 * time.Second},
		} {
			c := must(l.DialContext(t.Context()))(t)
			if _, err := io.WriteString(c, tt.says); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			_, _ = io.Copy(io.Discard, c)
			if took := time.Since(began); took > tt.ends+time.Second { // of the bubble's clock
				t.Errorf("%s: it ended after %v", tt.name, took)
			}
			c.Close()
		}
	})
}

// TestR58TheOperatorsListenerBoundsStreamsAndHeaders reads what the server allows to who connects.
func TestR58TheOperatorsListenerBoundsStreamsAndHeaders(t *testing.T) {
	t.Parallel()
	server, l := rpc.NewAdminServer(), bufconn.Listen(1<<20)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	c := must(l.DialContext(t.Context()))(t)
	defer c.Close()
	f := http2.NewFramer(c, c)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	settings, ok := must(f.ReadFrame())(t).(*http2.SettingsFrame)
	if !ok {
		t.Fatal("it does not begin with its settings")
	}
	for id, want := range map[http2.SettingID]uint32{http2.SettingMaxConcurrentStreams: 16, http2.SettingMaxHeaderListSize: 16 << 10} {
		if got, ok := settings.Value(id); !ok || got != want {
			t.Errorf("%v is %d, %v; want %d", id, got, ok, want)
		}
	}
}

func TestR58ACallOfAnOperatorThatNeverComesWholeEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, _ := written(t, nil)
		o := s.operators(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		stream := must(o.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, adminv1.WatcherService_ListWatchers_FullMethodName))(t)
		began := time.Now()
		err := stream.RecvMsg(&adminv1.ListWatchersResponse{})
		if took := time.Since(began); status.Code(err) != codes.DeadlineExceeded || took > time.Minute { // of the bubble's clock
			t.Errorf("after %v: %v", took, err)
		}
		o.list(t) // the twin: one that comes
	})
}
