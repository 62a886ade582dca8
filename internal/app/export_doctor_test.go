package app

import (
	"context"
	"crypto/x509"
	"maps"
	"slices"
	"time"

	"github.com/authsvc/authsvc/internal/instance"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// Judges are the doctor's, for what cannot be caused in a test, or not exactly.
var Judges = struct {
	Database    func(took time.Duration, schema sqlstore.Schema) []Finding
	Disk        func(folder string, free uint64) []Finding
	Server      func(sqlstore.Server) []Finding
	Replication func(sqlstore.Server) []Finding
	Connections func(s sqlstore.Server, running int) []Finding
	Skew        func(whose string, ahead, within time.Duration) []Finding
	Backlog     func(sqlstore.Backlog, time.Time) []Finding
	Keys        func(keys.Set, keys.Config) []Finding
	Certificate func(string, *x509.Certificate, time.Time) Finding
	Watchers    func([]Watcher) []Finding
	Instances   func([]instance.Instance, time.Time, revocation.Page) []Finding
}{judgeDatabase, judgeDisk, judgeServer, judgeReplication, judgeConnections, judgeSkew, judgeBacklog, judgeKeys, judgeCertificate, judgeWatchers, judgeInstances}

// ExamineWith runs checks that a test gives, one for each name.
func ExamineWith(ctx context.Context, limit time.Duration, looks map[string]func(context.Context) []Finding) []Finding {
	var list []check
	for _, name := range slices.Sorted(maps.Keys(looks)) {
		list = append(list, check{name, false, func(ctx context.Context, _ *examined) []Finding { return looks[name](ctx) }, alertNotReady})
	}
	return (&examined{}).all(ctx, list, limit)
}

// ChecksAlerts gives, for each check, the alert whose chapter its findings lead to.
func ChecksAlerts() map[string]string {
	all := map[string]string{}
	for _, c := range append(first(), checks()...) {
		all[c.name] = c.alert
	}
	return all
}
