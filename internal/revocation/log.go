package revocation

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/verify"
)

// Options are what New needs.
type Options struct {
	Store  Store            // required
	Issuer string           // required: part of every target
	List   *verify.List     // required: the list that this process's verifiers ask
	Every  time.Duration    // between looks at the store; 20 ms by default
	Hints  []Hints          // what makes it look at once; may be empty
	Now    func() time.Time // by which entries expire: the store's time; time.Now by default
	Logger *slog.Logger
	// KeyRevoked is called after a signing key's entry was read, so that the key ring looks again at once. May be nil.
	KeyRevoked func()
}

// Log is the revocation log as this process sees it: it tails the store and feeds the list. Its position says up to
// which row the list is complete, its lag how old that knowledge is.
type Log struct {
	o Options

	read sync.Mutex // one tail read at a time; guards the writes of what mu guards

	mu       sync.RWMutex
	epoch    [16]byte
	position int64
	live     []Live                   // in the order of the log; never changed below its length
	odd      map[verify.Target]string // the ids that do not fit into a Live
	kids     map[string]bool

	// By whom the log is answered, and who the store was opened at: guarded by read.
	server, settled string
	torn            bool // the history is another, and may lack what is live
	given           int  // what was appended again since it is

	waiting sync.Mutex
	next    *tailRead // the read that callers who come now will share

	hinted chan struct{} // holds at most one: look at once
	hints  atomic.Uint64

	unread    atomic.Bool // the store said "changed", or a hint did, and the read that followed failed
	entries   atomic.Uint64
	histories atomic.Uint64 // that followed another
	again     atomic.Uint64 // that other histories lacked
	freshAt   atomic.Int64  // monotonic nanoseconds since start: when the last completed read began
	start     time.Time
}

type tailRead struct {
	done chan struct{}
	err  error
}

// New makes a Log; nothing is read before CatchUp or Run.
func New(o Options) (*Log, error) {
	if o.Store == nil || o.List == nil || o.Issuer == "" {
		return nil, errors.New("revocation: Store, List and Issuer are required")
	}
	if o.Every <= 0 {
		o.Every = 20 * time.Millisecond
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Log{o: o, kids: map[string]bool{}, odd: map[verify.Target]string{}, hinted: make(chan struct{}, 1), start: time.Now()}
	l.freshAt.Store(-1)
	return l, nil
}

// Run tails the log until ctx ends: every Every, and at once where a hint comes. A store that is away makes the lag grow; it
// never stops the tail.
func (l *Log) Run(ctx context.Context) error {
	defer l.listen(ctx)()
	tick := time.NewTicker(l.o.Every)
	defer tick.Stop()
	sweep := time.NewTicker(time.Minute)
	defer sweep.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	var hinted <-chan struct{} // l.hinted, but for a while after each look that it caused
	failing, rest := false, hintPause
	for {
		var look func(context.Context) error
		select {
		case <-ctx.Done():
			return nil
		case <-sweep.C:
			now := l.o.Now()
			l.o.List.Sweep(now)
			l.sweep(now)
			continue
		case <-pause.C:
			hinted = l.hinted
			continue
		case <-tick.C:
			look = l.look
		case <-hinted:
			hinted = nil
			look = func(ctx context.Context) error {
				began, before := time.Now(), l.at()
				err := l.lookAtOnce(ctx)
				if rest = min(2*rest, idlePause); l.at() != before {
					rest = hintPause
				}
				pause.Reset(rest - time.Since(began))
				return err
			}
		}
		err := look(ctx)
		switch {
		case err != nil && ctx.Err() == nil && !failing:
			l.o.Logger.WarnContext(ctx, "revocation log cannot be read", "error", err)
			failing = true
		case err == nil && failing:
			l.o.Logger.InfoContext(ctx, "revocation log is read again")
			failing = false
		}
	}
}

// look asks whether anything changed and reads only then; unchanged counts as a completed read.
func (l *Log) look(ctx context.Context) error {
	began := l.elapsed()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	changed, err := l.o.Store.Changed(ctx)
	if err != nil {
		return err
	}
	if changed || l.unread.Load() || l.freshAt.Load() < 0 {
		return l.readOn(ctx)
	}
	l.completed(began)
	return nil
}

// lookAtOnce reads without asking first: a hint said that there is something.
func (l *Log) lookAtOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return l.readOn(ctx)
}

// readOn reads, and has the next look read if that fails.
func (l *Log) readOn(ctx context.Context) error {
	err := l.CatchUp(ctx)
	l.unread.Store(err != nil)
	return err
}

// CatchUp completes one tail read that begins after the call; concurrent callers share reads. What was committed before
// the call is in the list when it returns nil.
func (l *Log) CatchUp(ctx context.Context) error {
	l.waiting.Lock()
	r := l.next
	if r == nil {
		r = &tailRead{done: make(chan struct{})}
		l.next = r
		go l.run(context.WithoutCancel(ctx), r)
	}
	l.waiting.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), fault.Unavailable, fault.ReplicaStale, "the revocation log was not read in time")
	}
}

// run waits its turn, closes the door behind those who share it, and reads.
func (l *Log) run(ctx context.Context, r *tailRead) {
	l.read.Lock()
	defer l.read.Unlock()
	l.waiting.Lock()
	l.next = nil
	l.waiting.Unlock()
	r.err = l.tail(ctx)
	close(r.done)
}

// tail reads until nothing is left, and mends what another history lacks. Only then is the list believed, and dated.
func (l *Log) tail(ctx context.Context) error {
	began := l.elapsed()
	err := l.pages(ctx)
	if err == nil && (l.torn || l.server != l.settled) {
		err = l.heal(ctx)
	}
	if err != nil {
		return err
	}
	l.o.List.SetReady(true)
	l.completed(began)
	return nil
}

// pages reads page after page, each in a time of its own.
func (l *Log) pages(ctx context.Context) error {
	for more := true; more; {
		var err error
		if more, err = l.page(ctx); err != nil {
			return err
		}
	}
	return nil
}

// page reads what follows the position, as much as one page holds, and moves the position to its end.
func (l *Log) page(ctx context.Context) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	l.mu.RLock()
	epoch, after := l.epoch, l.position
	l.mu.RUnlock()
	p, err := l.o.Store.Tail(ctx, after)
	if err != nil {
		return false, err
	}
	another := epoch != [16]byte{} && p.Epoch != epoch
	if !another && p.Head < after {
		// Rows are gone, and their positions will come again: under this epoch a cursor would be taken for another's place.
		another = true
		if err := l.o.Store.Renew(ctx, p.Epoch); err != nil {
			return false, err
		}
	}
	if another && after > 0 {
		// Another history: what we hold stays (merged, never swapped), and the new log is read from its start.
		if p, err = l.o.Store.Tail(ctx, 0); err != nil {
			return false, err
		}
	}
	if p.More {
		p.Head = p.Entries[len(p.Entries)-1].Position
	}
	l.server, l.torn = p.Server, l.torn || another
	if another {
		l.histories.Add(1)
		l.o.Logger.WarnContext(ctx, "the database has another history than before, as after a failover or a restore: nothing is served from it until it has all that this server knows to be revoked",
			"epoch", hex.EncodeToString(p.Epoch[:]), "before", hex.EncodeToString(epoch[:]))
	}
	l.apply(ctx, p, another)
	return p.More, nil
}

// apply makes a page part of the list and of what is live.
func (l *Log) apply(ctx context.Context, p Page, another bool) {
	revocations, live := make([]verify.Revocation, 0, len(p.Entries)), make([]Live, 0, len(p.Entries))
	var kids []string
	odd := map[verify.Target]string{}
	for _, e := range p.Entries {
		r := verify.NewRevocation(l.o.Issuer, verify.Kind(e.Kind), e.ID, e.NotBefore, e.ExpiresAt)
		revocations = append(revocations, r)
		entry := Live{Row: e.Position, Target: r.Target, NotBefore: r.NotBefore, ExpireTime: unixCeil(r.ExpiresAt)}
		switch {
		case !e.ExpiresAt.IsZero(): // to the microsecond, so that it can be appended again as it was
			entry.CommitTime = e.ExpiresAt.Add(-journal.RevocationTTL).UnixMicro()
		case !e.CommittedAt.IsZero():
			entry.CommitTime = e.CommittedAt.UnixMicro()
		}
		if !entry.remember(e.Kind, e.ID) {
			odd[entry.Target] = e.ID
		}
		live = append(live, entry)
		if e.Kind == journal.KindKey {
			kids = append(kids, e.ID)
		}
	}
	l.o.List.Apply(revocations...)
	l.entries.Add(uint64(len(revocations)))
	l.mu.Lock()
	l.take(p, live, another)
	maps.Copy(l.odd, odd)
	var unheard []string
	for _, kid := range kids {
		if !l.kids[kid] {
			unheard = append(unheard, kid)
		}
		l.kids[kid] = true
	}
	l.mu.Unlock()
	if len(unheard) > 0 && l.freshAt.Load() >= 0 { // the first read finds those of long ago
		l.o.Logger.WarnContext(ctx, "signing keys were revoked: every token that they signed is refused from now on", "keys", unheard)
	}
	if len(kids) > 0 && l.o.KeyRevoked != nil {
		l.o.KeyRevoked()
	}
}

func (l *Log) at() Cursor {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return Cursor{l.epoch, l.position}
}

func (l *Log) elapsed() int64 { return int64(time.Since(l.start)) }

func (l *Log) completed(began int64) {
	for {
		old := l.freshAt.Load()
		if old >= began || l.freshAt.CompareAndSwap(old, began) {
			return
		}
	}
}

// Lag is the age of the start of the last completed tail read; it is very large before the first.
func (l *Log) Lag() time.Duration {
	at := l.freshAt.Load()
	if at < 0 {
		return time.Duration(1<<63 - 1)
	}
	return time.Duration(l.elapsed() - at)
}

// MaxLag is the age beyond which nothing is answered from the list without reading the log first.
const MaxLag = time.Second

// Fresh makes sure that the list is at most MaxLag old, reading the log once if it is not.
func (l *Log) Fresh(ctx context.Context) error {
	if l.Lag() <= MaxLag {
		return nil
	}
	return l.stale(l.CatchUp(ctx))
}

func (l *Log) stale(err error) error {
	if err == nil {
		return nil
	}
	return fault.Wrap(err, fault.Unavailable, fault.ReplicaStale, "this replica cannot read the revocation log; nothing was decided")
}

// KeyRevoked reports whether the signing key has been revoked, so that nothing is signed with it again.
func (l *Log) KeyRevoked(kid string) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.kids[kid]
}

// Row is the position as a number, for metrics.
func (l *Log) Row() int64 { return l.at().Row }

// Entries counts what was read since New, whoever revoked it; a log that is read anew counts again.
func (l *Log) Entries() uint64 { return l.entries.Load() }

// Position is the opaque text of the cursor up to which the list is complete.
func (l *Log) Position() string { return l.at().String() }

// Await makes sure that the list holds everything up to a position that Position gave, here or at another replica. An
// empty one asks for nothing; a malformed one is Invalid.
func (l *Log) Await(ctx context.Context, position string) error {
	if position == "" {
		return nil
	}
	c, err := ParseCursor("min_position", position)
	if err != nil {
		return err
	}
	if at := l.at(); c.Epoch == at.Epoch && at.Row >= c.Row {
		return nil
	}
	return l.stale(l.CatchUp(ctx))
}
