package rest

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// How many requests a connection may take back before they are answered: so many at once, and so many in each second
// after that. net/http bounds what a flood of them holds, and closes once its handlers cannot follow, but a flood that they
// can follow lasts for as long as it likes. A request that was waited for counts for nothing: the streams of a connection
// bound how many of those there can be, and a proxy takes back as many when the service has become slow, for all its
// callers whose patience ends.
const (
	takenBack          = 1000
	takenBackPerSecond = 200
	waitedFor          = 50 * time.Millisecond
)

// line is one connection and what it may still take back.
type line struct {
	conn   net.Conn
	mu     sync.Mutex
	tokens float64
	last   time.Time
}

type lineKey struct{}

// withLine is for http.Server's ConnContext.
func withLine(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, lineKey{}, &line{conn: conn, tokens: takenBack, last: time.Now()})
}

// patient closes the connections that take back too many requests. Over HTTP/1.1 to take back is to hang up.
func patient(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		next.ServeHTTP(w, r)
		if r.ProtoMajor < 2 || r.Context().Err() == nil {
			return
		}
		now := time.Now()
		if l, ok := r.Context().Value(lineKey{}).(*line); ok && now.Sub(start) < waitedFor && !l.spend(now) {
			_ = l.conn.Close()
		}
	})
}

func (l *line) spend(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tokens = min(takenBack, l.tokens+now.Sub(l.last).Seconds()*takenBackPerSecond) - 1
	l.last = now
	return l.tokens >= 0
}
