package revocation

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"sort"
	"time"

	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/verify"
)

// name is the kind and the id of an entry, from which it can be appended again. Nearly all ids are 16 bytes in base64url, and
// a million of them are held: those bytes alone are kept. The others stand in Log.odd.
type name struct {
	kind byte // 1 + its place in kinds; plus odd for an id that is not in id
	id   [16]byte
}

const odd = 0x80

func kinds() [6]journal.Kind {
	return [...]journal.Kind{journal.KindSession, journal.KindToken, journal.KindKey, journal.KindSubject, journal.KindClient, journal.KindAll}
}

// remember keeps what the entry is about; false if the id does not fit.
func (e *Live) remember(kind journal.Kind, id string) bool {
	all := kinds()
	e.name = name{kind: byte(1 + slices.Index(all[:], kind))}
	var raw [18]byte
	if len(id) == 22 {
		if out, err := base64.RawURLEncoding.Strict().AppendDecode(raw[:0], []byte(id)); err == nil && len(out) == len(e.name.id) {
			e.name.id = [16]byte(out)
			return true
		}
	}
	e.name.kind |= odd
	return false
}

// entry gives a live entry as the store had it. The caller holds l.mu or l.read.
func (l *Log) entry(e Live) Entry {
	out := Entry{Position: e.Row, Kind: kinds()[e.name.kind&^odd-1], ID: l.odd[e.Target]}
	if e.name.kind&odd == 0 {
		out.ID = base64.RawURLEncoding.EncodeToString(e.name.id[:])
	}
	if e.NotBefore != 0 {
		out.NotBefore = time.Unix(e.NotBefore, 0).UTC()
	}
	if e.CommitTime != 0 {
		out.CommittedAt = time.UnixMicro(e.CommitTime).UTC()
	}
	if e.ExpireTime != 0 {
		out.ExpiresAt = out.CommittedAt.Add(journal.RevocationTTL)
	}
	return out
}

// forgetNames drops the odd ids of entries that are gone. The caller holds l.mu.
func (l *Log) forgetNames() {
	left := map[verify.Target]string{}
	for _, e := range l.live {
		if e.name.kind&odd != 0 {
			left[e.Target] = l.odd[e.Target]
		}
	}
	l.odd = left
}

// Reappended counts what this process appended again to histories of the database that lacked it. What another process was first
// to append is counted there.
func (l *Log) Reappended() uint64 { return l.again.Load() }

// Histories counts how often the database turned out to have another history than the one that this process had read.
func (l *Log) Histories() uint64 { return l.histories.Load() }

// covers reports that an entry of the same target makes another needless.
func (e Live) covers(other Live) bool {
	return e.NotBefore >= other.NotBefore && (e.ExpireTime == 0 || other.ExpireTime != 0 && e.CommitTime >= other.CommitTime)
}

// lacking gives the entries that only an earlier history had, and where those of this one begin.
func lacking(live []Live) (owed []Live, begins int) {
	begins = sort.Search(len(live), func(i int) bool { return live[i].Row > 0 })
	newest := make(map[verify.Target]int, begins)
	for _, e := range live[:begins] {
		newest[e.Target] = -1
	}
	for i, e := range live[begins:] {
		if _, asked := newest[e.Target]; asked {
			newest[e.Target] = begins + i
		}
	}
	for i := begins - 1; i >= 0; i-- {
		e := live[i]
		if at := newest[e.Target]; at < 0 || !live[at].covers(e) {
			owed = append(owed, e)
			newest[e.Target] = i
		}
	}
	slices.Reverse(owed)
	return owed, begins
}

var errTornAgain = errors.New("revocation: the database's history changed while it was mended")

// heal gives the history what it lacks, and opens the store at the server that answers. Until it has succeeded the store
// stays closed there, and every tail tries it again. The caller holds l.read, and has read the log to its end.
func (l *Log) heal(ctx context.Context) error {
	if l.torn {
		if err := l.mend(ctx); err != nil {
			return err
		}
	}
	if err := l.o.Store.Settle(ctx, l.server); err != nil {
		return err
	}
	if l.torn {
		epoch := l.View().Cursor.Epoch
		l.o.Logger.WarnContext(ctx, "the database's other history has all that this server knows to be revoked: what it had lost was appended again",
			"epoch", hex.EncodeToString(epoch[:]), "entries", l.given)
	}
	l.settled, l.torn, l.given = l.server, false, 0
	return nil
}

// round is how many entries are appended again before the log is read on: what Reappend has to look through stays short.
const round = 10 * ReappendSize

func (l *Log) mend(ctx context.Context) error {
	epoch := l.View().Cursor.Epoch
	for {
		v := l.View()
		owed, begins := lacking(v.Live)
		if len(owed) == 0 {
			l.forget(begins, nil)
			return nil
		}
		some := owed[:min(len(owed), round)]
		for part := range slices.Chunk(some, ReappendSize) {
			entries := make([]Entry, len(part))
			for i, e := range part {
				entries[i] = l.entry(e)
			}
			if err := l.reappend(ctx, v.Cursor.Row, entries); err != nil {
				return err
			}
		}
		if err := l.pages(ctx); err != nil {
			return err
		}
		if l.View().Cursor.Epoch != epoch {
			return errTornAgain
		}
		l.forget(begins, owed[len(some):]) // what was given has a row again, or has expired
	}
}

// forget replaces the entries that stand before the log's first row.
func (l *Log) forget(begins int, left []Live) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if begins > 0 {
		l.live = append(slices.Clip(left), l.live[begins:]...)
	}
}

func (l *Log) reappend(ctx context.Context, after int64, entries []Entry) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	appended, err := l.o.Store.Reappend(ctx, after, entries)
	l.given += appended
	l.again.Add(uint64(appended))
	return err
}
