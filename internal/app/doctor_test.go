package app_test

import (
	"context"
	"crypto/x509"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/app"
	"github.com/authsvc/authsvc/internal/instance"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// sound is a PostgreSQL that nothing is wrong with.
func sound(change func(*sqlstore.Server)) sqlstore.Server {
	s := sqlstore.Server{Version: "15.18", Fsync: true, FullPageWrites: true, Commit: "on", StandbyNames: "ANY 1 (*)", MayMonitor: true, User: "authsvc",
		Standbys: []sqlstore.Standby{{Name: "b", State: "streaming", Sync: "quorum"}}, Room: 97, Connected: 20, PerServer: 12, Archiving: true}
	change(&s)
	return s
}

func TestTheDoctorJudges(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	same := func(*sqlstore.Server) {}
	alone := func(s *sqlstore.Server) { s.Standbys = nil }
	certificate := func(from, to time.Duration) []app.Finding {
		return []app.Finding{app.Judges.Certificate("http.tls", &x509.Certificate{NotBefore: now.Add(from), NotAfter: now.Add(to)}, now)}
	}
	const day = 24 * time.Hour
	set := func(k ...keys.Key) keys.Set { return keys.Set{Now: now, Keys: k} }
	active := func(age time.Duration) keys.Key {
		return keys.Key{ID: "a", State: keys.Active, ActivatedAt: now.Add(-age), PublishedAt: now.Add(-age - day)}
	}
	pending := func(age time.Duration) keys.Key {
		return keys.Key{ID: "p", State: keys.Pending, PublishedAt: now.Add(-age)}
	}
	judgeKeys := func(k ...keys.Key) []app.Finding { return app.Judges.Keys(set(k...), keys.DefaultConfig()) }
	head := revocation.Page{Epoch: [16]byte{1}, Head: 5000}
	server := func(change func(*instance.Instance)) instance.Instance {
		i := instance.Instance{ID: "one", Host: "h", Version: "v1", StartedAt: now.Add(-day), SeenAt: now.Add(-time.Second), Clock: now.Add(-time.Second),
			State: instance.State{Epoch: [16]byte{1}, Position: 5000, Lag: 100 * time.Millisecond}}
		change(&i)
		return i
	}
	instances := func(all ...instance.Instance) []app.Finding { return app.Judges.Instances(all, now, head) }
	asis := func(*instance.Instance) {}
	tests := []struct {
		name  string
		found []app.Finding
		want  string // the levels, in order, and a word of the last finding
		word  string
	}{
		{"a database", app.Judges.Database(time.Millisecond, sqlstore.Schema{Steps: []sqlstore.Step{{State: sqlstore.Done}}}), "ok", "all that this release brings"},
		{"D10 one that is slow, and not migrated", app.Judges.Database(time.Second, sqlstore.Schema{Steps: []sqlstore.Step{{}}}), "warning warning", "migrate up"},
		{"a disk with room", app.Judges.Disk("/d", 5<<30), "ok", "5120 MiB"},
		{"D11 a disk with little room", app.Judges.Disk("/d", 500<<20), "warning", "make room"},
		{"D11 a full disk", app.Judges.Disk("/d", 1<<20), "problem", "make room"},
		{"a sound server", app.Judges.Server(sound(same)), "ok", "PostgreSQL 15.18"},
		{"fsync off", app.Judges.Server(sound(func(s *sqlstore.Server) { s.Fsync = false })), "ok problem", "set fsync = on"},
		{"full_page_writes off", app.Judges.Server(sound(func(s *sqlstore.Server) { s.FullPageWrites = false })), "ok problem", "set full_page_writes = on"},
		{"no archive", app.Judges.Server(sound(func(s *sqlstore.Server) { s.Archiving = false })), "ok note", "docs/backup.md"},
		{"an archive that fails", app.Judges.Server(sound(func(s *sqlstore.Server) { s.ArchiveFailing = true })), "ok problem", "archive_command"},
		{"D07 a synchronous standby", app.Judges.Replication(sound(same)), "ok", "commits wait for b"},
		{"D07 one that is promised and not there", app.Judges.Replication(sound(alone)), "problem", "ALTER SYSTEM SET synchronous_standby_names = ''"},
		{"D07 one that is there and does not confirm", app.Judges.Replication(sound(func(s *sqlstore.Server) { s.Standbys[0].Sync = "async" })), "problem", "application_name"},
		{"D07 one that is still catching up", app.Judges.Replication(sound(func(s *sqlstore.Server) { s.Standbys[0].State = "catchup" })), "problem", "start the standby"},
		{"D07 one that hangs", app.Judges.Replication(sound(func(s *sqlstore.Server) { s.Standbys[0].Silent = 9 * time.Second })), "problem", "has not done so for 9s (b)"},
		{"D07 one that says something", app.Judges.Replication(sound(func(s *sqlstore.Server) { s.Standbys[0].Silent = time.Second })), "ok", "commits wait for b"},
		{"D07 one of two that hangs", app.Judges.Replication(sound(func(s *sqlstore.Server) {
			s.Standbys = append(s.Standbys, sqlstore.Standby{Name: "c", State: "streaming", Sync: "quorum", Silent: time.Minute})
		})), "warning", "for 1m0s: c"},
		{"D07 one that hangs, and that nobody waits for", app.Judges.Replication(sound(func(s *sqlstore.Server) {
			s.Standbys = append(s.Standbys, sqlstore.Standby{Name: "c", State: "streaming", Sync: "async", Silent: time.Minute})
		})), "ok", "commits wait for b"},
		{"D07 an asynchronous standby", app.Judges.Replication(sound(func(s *sqlstore.Server) { s.StandbyNames, s.Standbys[0].Sync = "", "async" })), "warning", "synchronous_standby_names = 'ANY 1 (*)'"},
		{"no standby", app.Judges.Replication(sound(func(s *sqlstore.Server) { s.StandbyNames, s.Standbys = "", nil })), "note", "docs/backup.md"},
		{"a standby that we may not see", app.Judges.Replication(sound(func(s *sqlstore.Server) {
			s.MayMonitor, s.Standbys = false, []sqlstore.Standby{{Name: "b"}}
		})), "note", "GRANT pg_monitor TO authsvc"},
		{"D10 enough connections", app.Judges.Connections(sound(same), 3), "ok", "at most 36"},
		{"D10 none for one server more", app.Judges.Connections(sound(same), 8), "warning", "pool_max_conns"},
		{"D10 too few", app.Judges.Connections(sound(same), 9), "problem", "max_connections"},
		{"D16 a good clock", app.Judges.Skew("it", 900*time.Millisecond, 0), "ok", "ahead"},
		{"D16 a clock behind", app.Judges.Skew("it", -2*time.Second, 0), "warning", "NTP"},
		{"D16 what may be the way of the question", app.Judges.Skew("it", -2*time.Second, 1500*time.Millisecond), "ok", "behind"},
		{"D16 a clock far ahead", app.Judges.Skew("it", time.Hour, 0), "problem", "NTP"},
		{"nothing left over", app.Judges.Backlog(sqlstore.Backlog{}, now), "ok", "nothing"},
		{"a cut-off that is carried out", app.Judges.Backlog(sqlstore.Backlog{Ends: 1, OldestEnd: now}, now), "note", "being"},
		{"one that is not", app.Judges.Backlog(sqlstore.Backlog{Ends: 1, OldestEnd: now.Add(-time.Hour)}, now), "warning", "cleaning failed"},
		{"tables that grow", app.Judges.Backlog(sqlstore.Backlog{Revocations: 1, Sessions: 2, Audit: 3}, now), "warning warning warning", "cleaning failed"},
		{"keys in order", judgeKeys(active(day), pending(time.Hour)), "ok", "p follows"},
		{"no key yet", judgeKeys(), "note", "start a server"},
		{"D14 two active keys", judgeKeys(active(day), active(day), pending(day)), "problem", "keys rotate -now"},
		{"no active key", judgeKeys(pending(day)), "problem", "keys rotate -now"},
		{"no pending key", judgeKeys(active(day)), "ok warning", "within a minute"},
		{"a rotation that is overdue", judgeKeys(active(31*day), pending(2*day)), "warning", "authsvc keys rotate"},
		{"one that waits for pre-publication", judgeKeys(active(31*day), pending(time.Hour)), "ok", "p follows"},
		{"a certificate", certificate(-day, 60*day), "ok", "ends at"},
		{"one that ends soon", certificate(-day, 10*day), "warning", "renew"},
		{"one that ends at once", certificate(-day, time.Hour), "problem", "renew"},
		{"one that has ended", certificate(-day, -time.Hour), "problem", "renew"},
		{"one of tomorrow", certificate(day, 60*day), "problem", "clock"},
		{"watchers that know", app.Judges.Watchers([]app.Watcher{{Age: "120ms"}, {Age: ""}}), "ok", "2 services"},
		{"one that knows what was", app.Judges.Watchers([]app.Watcher{{Age: "120ms"}, {Age: "12s", Client: "c"}}), "warning", "revocation log"},
		{"no server", instances(), "note", "start one"},
		{"servers", instances(server(asis), server(func(i *instance.Instance) { i.ID = "two" })), "ok ok", "runs since"},
		{"servers of two releases", instances(server(asis), server(func(i *instance.Instance) { i.Version = "v2" })), "ok ok note", "rolling upgrade"},
		{"one that fell silent", instances(server(asis), server(func(i *instance.Instance) { i.SeenAt = now.Add(-time.Minute) })), "ok warning", "whether it does"},
		{"one that cannot read", instances(server(func(i *instance.Instance) { i.Lag = time.Minute })), "problem", "reaches the database"},
		{"one that is behind", instances(server(func(i *instance.Instance) { i.Position = 3000 })), "warning", "2000 rows"},
		{"one in another epoch", instances(server(func(i *instance.Instance) { i.Epoch = [16]byte{2} })), "problem", "start it anew"},
		{"D16 one with a clock ahead", instances(server(func(i *instance.Instance) { i.Clock = i.SeenAt.Add(2 * time.Second) })), "ok warning", "NTP"},
		{"D16 one with a clock far behind", instances(server(func(i *instance.Instance) { i.Clock = i.SeenAt.Add(-time.Hour) })), "ok problem", "NTP"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var levels []string
			for _, f := range tt.found {
				levels = append(levels, string(f.Level))
				if f.Found == "" || (f.Level == app.LevelWarning || f.Level == app.LevelProblem) && f.Do == "" {
					t.Errorf("it does not say what to do: %+v", f)
				}
			}
			if got := strings.Join(levels, " "); got != tt.want {
				t.Errorf("it is judged %s, want %s: %+v", got, tt.want, tt.found)
			}
			if last := tt.found[len(tt.found)-1]; !strings.Contains(last.Found+last.Do, tt.word) {
				t.Errorf("it does not say %q: %+v", tt.word, last)
			}
		})
	}
}

// TestTheDoctorLeadsToTheRunbook holds its chapters to those that are there.
func TestTheDoctorLeadsToTheRunbook(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	without := 0
	for check, alert := range app.ChecksAlerts() {
		if alert == "" {
			without++
		} else if !strings.Contains(string(text), "\n## "+alert+"\n") {
			t.Errorf("%s: docs/runbook.md has no chapter %s", check, alert)
		}
	}
	if without > 3 {
		t.Errorf("%d checks lead nowhere", without)
	}
	found := app.ExamineWith(t.Context(), time.Minute, map[string]func(context.Context) []app.Finding{"it": func(context.Context) []app.Finding {
		return slices.Concat([]app.Finding{{Level: app.LevelOK}, {Level: app.LevelNote}, {Level: app.LevelWarning}, {Level: app.LevelProblem}},
			app.Judges.Instances([]instance.Instance{{SeenAt: time.Unix(0, 0), Clock: time.Unix(9, 0)}}, time.Unix(0, 0), revocation.Page{Epoch: [16]byte{1}}))
	}})
	var see []string
	for _, f := range found {
		see = append(see, f.See)
	}
	const page = "docs/runbook.md#"
	if diff := cmp.Diff([]string{"", "", page + "authsvcnotready", page + "authsvcnotready", page + "authsvcrevocationlag", page + "authsvcclockskew"}, see); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestACheckThatHangsIsAProblemAndHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		forever := make(chan struct{})
		defer close(forever)
		begun := time.Now()
		found := app.ExamineWith(t.Context(), 8*time.Second, map[string]func(context.Context) []app.Finding{
			"deaf": func(context.Context) []app.Finding { <-forever; return nil },
			"heeds its context": func(ctx context.Context) []app.Finding {
				<-ctx.Done()
				return []app.Finding{{Level: app.LevelProblem, Found: ctx.Err().Error(), Do: "x"}}
			},
			"quick": func(context.Context) []app.Finding { return []app.Finding{{Level: app.LevelOK, Found: "one\ntwo"}} },
		})
		var got []string
		for _, f := range found {
			got = append(got, string(f.Level)+" "+f.Check+": "+f.Found)
		}
		want := []string{"problem deaf: this was not known after 8s", "problem heeds its context: context deadline exceeded", "ok quick: one; two"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if took := time.Since(begun); took != 9*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}
