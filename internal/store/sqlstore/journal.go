package sqlstore

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
)

// endBatch is how many rows the end of everything of an account, a client or the installation touches in its own
// transaction; a sweep does the rest.
const endBatch = 1000

// commit writes a journal into the operation's transaction: the one path by which a session ends. It gives how many
// live sessions it ended.
func (t *tx) commit(j journal.Journal) (ended int, err error) {
	if err := valid(j); err != nil {
		return 0, err
	}
	for _, e := range j.Ends {
		n, err := t.end(e)
		if err != nil {
			return 0, err
		}
		ended += n
	}
	for _, r := range j.Revokes {
		if err := t.revoke(r); err != nil {
			return 0, err
		}
	}
	for _, r := range j.Audit {
		if err := t.record(r); err != nil {
			return 0, err
		}
	}
	return ended, nil
}

func (t *tx) record(r journal.Record) error {
	_, err := t.exec(`INSERT INTO audit (time, event, outcome, reason, actor, subject, client, session, ip, user_agent, request_id)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, micros(t.now), r.Event, r.Outcome, r.Reason, r.Actor, r.Subject,
		string(r.Client), string(r.Session), r.IP, r.UserAgent, r.RequestID)
	return err
}

// valid refuses a journal that does not say one clear thing, before anything of it is written.
func valid(j journal.Journal) error {
	for _, e := range j.Ends {
		selectors := 0
		for _, set := range []bool{e.Session != "", e.Account != "", e.Client != "", e.All} {
			if set {
				selectors++
			}
		}
		if selectors != 1 || e.Except != "" && e.Account == "" || e.Reason == "" {
			return errors.New("sqlstore: an End must have a reason and exactly one of Session, Account, Client and All")
		}
		if err := storable("end", string(e.Session), string(e.Account), string(e.Client), string(e.Except), e.Reason); err != nil {
			return err
		}
	}
	for _, r := range j.Revokes {
		switch r.Kind {
		case journal.KindSession, journal.KindToken, journal.KindKey, journal.KindSubject, journal.KindClient:
			if r.ID == "" {
				return fmt.Errorf("sqlstore: a revocation of kind %q needs an id", r.Kind)
			}
		case journal.KindAll:
			if r.ID != "" {
				return errors.New("sqlstore: a revocation of everything has no id")
			}
		default:
			return fmt.Errorf("sqlstore: unknown kind of revocation %q", r.Kind)
		}
		if err := storable("revocation", r.ID); err != nil {
			return err
		}
	}
	for _, r := range j.Audit {
		if r.Event == "" || r.Outcome != "ok" && r.Outcome != "denied" && r.Outcome != "error" {
			return fmt.Errorf("sqlstore: audit record %q has outcome %q", r.Event, r.Outcome)
		}
		if err := storable("audit", r.Event, r.Reason, r.Actor, r.Subject, string(r.Client), string(r.Session), r.IP,
			r.UserAgent, r.RequestID); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) end(e journal.End) (int, error) {
	switch {
	case e.Session != "":
		return t.endSession(string(e.Session), e.Reason)
	case e.Account != "" && e.Except != "":
		return t.endOthers(e.Account, e.Except, e.Reason)
	case e.Account != "":
		return t.cutOff(journal.KindSubject, string(e.Account), e.Reason)
	case e.Client != "":
		return t.cutOff(journal.KindClient, string(e.Client), e.Reason)
	default:
		return t.cutOff(journal.KindAll, "", e.Reason)
	}
}

// endSession ends one row. One that ended so recently that an access token of it may live is listed once more.
func (t *tx) endSession(id, reason string) (int, error) {
	n, err := t.exec(`UPDATE sessions SET ended_at = ?, end_reason = ?, sweep_at = ? WHERE id = ? AND ended_at IS NULL`,
		micros(t.now), reason, micros(t.now), id)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		var endedAt int64
		err := t.row(`SELECT ended_at FROM sessions WHERE id = ?`, id).Scan(&endedAt)
		if errors.Is(err, sql.ErrNoRows) {
			return 0, nil
		}
		if err != nil || t.now.Sub(instantOf(endedAt)) >= journal.RevocationTTL {
			return 0, err
		}
	}
	t.list(journal.KindSession, id, 0)
	return int(n), nil
}

func (t *tx) endOthers(id ids.Account, except ids.Session, reason string) (int, error) {
	others, err := collect(t, scanText, `SELECT id FROM sessions WHERE account = ? AND ended_at IS NULL AND id <> ?`,
		string(id), string(except))
	if err != nil {
		return 0, err
	}
	ended := 0
	for _, other := range others {
		n, err := t.endSession(other, reason)
		if err != nil {
			return 0, err
		}
		ended += n
	}
	return ended, nil
}

func (t *tx) revoke(r journal.Revocation) error {
	if !r.Kind.CutOff() {
		t.list(r.Kind, r.ID, 0)
		return nil
	}
	_, err := t.cutOff(r.Kind, r.ID, journal.EndedByRevoke)
	return err
}

// list puts one entry into the revocation log when the operation ends.
func (t *tx) list(kind journal.Kind, id string, notBefore int64) {
	var expires int64
	if kind != journal.KindKey {
		expires = micros(t.now.Add(journal.RevocationTTL))
	}
	t.entries = append(t.entries, entry{kind, id, notBefore, expires})
}

// cutOff lists a cut-off, keeps it for good on its owner's row, and ends what it killed: the first endBatch rows now,
// the rest in sweeps, which resume after a restart.
func (t *tx) cutOff(kind journal.Kind, id, reason string) (int, error) {
	notBefore, err := t.notBefore(kind, id)
	if err != nil {
		return 0, err
	}
	t.list(kind, id, notBefore)
	if err := t.keepCutOff(kind, id, notBefore); err != nil {
		return 0, err
	}
	return t.endCutOff(kind, id, notBefore, reason)
}

// keepCutOff keeps a cut-off for good where a later one does not stand.
func (t *tx) keepCutOff(kind journal.Kind, id string, notBefore int64) (err error) {
	switch kind {
	case journal.KindSubject:
		_, err = t.exec(`UPDATE accounts SET not_before = ? WHERE id = ? AND not_before < ?`, notBefore, id, notBefore)
	case journal.KindClient:
		_, err = t.exec(`UPDATE clients SET not_before = ? WHERE id = ? AND not_before < ?`, notBefore, id, notBefore)
	default:
		_, err = t.exec(`UPDATE installation SET not_before = ? WHERE not_before < ?`, notBefore, notBefore)
	}
	if err == nil && kind != journal.KindSubject {
		err = t.reviseClients()
	}
	return err
}

// endCutOff ends the first endBatch rows that a cut-off killed, and leaves the rest to sweeps.
func (t *tx) endCutOff(kind journal.Kind, id string, notBefore int64, reason string) (ended int, err error) {
	touched, ended, err := t.endDead(kind, id, notBefore, reason, endBatch)
	if err != nil || touched < endBatch {
		return ended, err
	}
	_, err = t.exec(`INSERT INTO pending_ends (kind, id, not_before, reason) VALUES (?, ?, ?, ?)
		ON CONFLICT (kind, id) DO UPDATE SET not_before = excluded.not_before, reason = excluded.reason
			WHERE pending_ends.not_before < excluded.not_before`,
		string(kind), id, notBefore, reason)
	return ended, err
}

// notBefore is where a cut-off made now stands: at the next whole second and one more. What began since an earlier
// cut-off may carry an auth_time that was put forward to that cut-off; the new one stands above it too, or two
// cut-offs within a second would let through what began between them.
func (t *tx) notBefore(kind journal.Kind, id string) (int64, error) {
	at := micros(ceilSecond(t.now).Add(time.Second))
	var given int64 // the latest auth_time that a token which this cut-off is to kill may carry
	var err error
	switch kind {
	case journal.KindSubject:
		err = t.row(`SELECT COALESCE(MAX(auth_time), 0) FROM sessions WHERE account = ? AND ended_at IS NULL`, id).Scan(&given)
	case journal.KindClient:
		// A service token leaves no row: its auth_time is the cut-off that stood.
		err = t.row(`SELECT MAX(v) FROM (SELECT COALESCE(MAX(auth_time), 0) AS v FROM sessions WHERE client = ? AND ended_at IS NULL
			UNION ALL SELECT COALESCE(MAX(not_before), 0) FROM clients WHERE id = ?
			UNION ALL SELECT not_before FROM installation) AS given`, id, id).Scan(&given)
	default:
		err = t.row(`SELECT MAX(v) FROM (SELECT COALESCE(MAX(auth_time), 0) AS v FROM sessions WHERE ended_at IS NULL
			UNION ALL SELECT COALESCE(MAX(not_before), 0) FROM clients
			UNION ALL SELECT not_before FROM installation) AS given`).Scan(&given)
	}
	if given >= at {
		at = given + time.Second.Microseconds()
	}
	return at, err
}

func ceilSecond(t time.Time) time.Time {
	if whole := t.Truncate(time.Second); whole.Before(t) {
		return whole.Add(time.Second)
	}
	return t
}

// endDead ends at most limit rows that a cut-off killed. Ended counts those among them that had not expired already.
func (t *tx) endDead(kind journal.Kind, id string, notBefore int64, reason string, limit int) (touched, ended int, err error) {
	const (
		set    = `UPDATE sessions SET ended_at = ?, end_reason = ?, sweep_at = ? WHERE +ended_at IS NULL AND id IN (SELECT id FROM sessions WHERE `
		unless = ` LIMIT ?) RETURNING CASE WHEN idle_ends_at > ? AND ends_at > ? THEN 1 ELSE 0 END`
	)
	now := micros(t.now)
	var live []int64
	switch kind {
	case journal.KindSubject:
		live, err = collect(t, scanInt, set+`account = ? AND ended_at IS NULL AND auth_time < ?`+unless,
			now, reason, now, id, notBefore, limit, now, now)
	case journal.KindClient:
		live, err = collect(t, scanInt, set+`client = ? AND ended_at IS NULL AND auth_time < ?`+unless,
			now, reason, now, id, notBefore, limit, now, now)
	default: // a session is created before its auth_time has passed, so the index on created_at bounds the search
		live, err = collect(t, scanInt, set+`ended_at IS NULL AND created_at < ? AND auth_time < ? ORDER BY created_at, id`+unless,
			now, reason, now, notBefore, notBefore, limit, now, now)
	}
	for _, v := range live {
		ended += int(v)
	}
	return len(live), ended, err
}

// reviseClients tells every copy of the clients in memory to read again.
func (t *tx) reviseClients() error {
	_, err := t.exec(`UPDATE installation SET client_revision = client_revision + 1`)
	return err
}

func scanText(s scanner) (string, error) {
	var v string
	err := s.Scan(&v)
	return v, err
}

func scanInt(s scanner) (int64, error) {
	var v int64
	err := s.Scan(&v)
	return v, err
}
