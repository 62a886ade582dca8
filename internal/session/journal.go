package session

import (
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
)

// The words that refresh adds to the audit vocabulary.
const (
	eventReuse         = "refresh.reuse"
	eventForeignClient = "refresh.foreign_client"
)

// TheftJournal is what commits when Decide says End: the session's end, with the revocation of its access tokens, and the
// audit record of who presented what. The store commits it before it answers Reused.
func TheftJournal(s Session, r Redeem) journal.Journal {
	return journal.Journal{
		Ends:  []journal.End{{Session: s.ID, Reason: journal.EndedByReuse}},
		Audit: []journal.Record{refused(s, r, eventReuse, fault.RefreshReused, s.Client)},
	}
}

// ForeignClientJournal is what commits when Check says ForeignClient: the alert alone, since another client's token must
// change nothing for its owner. Its Client is the one that presented the token, not the session's.
func ForeignClientJournal(s Session, r Redeem) journal.Journal {
	return journal.Journal{Audit: []journal.Record{refused(s, r, eventForeignClient, fault.RefreshInvalid, r.Client)}}
}

func refused(s Session, r Redeem, event string, reason fault.Reason, client ids.Client) journal.Record {
	return journal.Record{
		Event:     event,
		Outcome:   "denied",
		Reason:    string(reason),
		Actor:     string(r.Client),
		Subject:   string(s.Account),
		Client:    client,
		Session:   s.ID,
		IP:        r.IP,
		UserAgent: r.UserAgent,
		RequestID: r.RequestID,
	}
}
