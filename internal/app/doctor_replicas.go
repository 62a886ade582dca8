package app

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/authsvc/authsvc/internal/instance"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/store/redisstore"
)

// oldKnowledge is from when on an accept by what a watcher or a server knows counts as stale.
const oldKnowledge = 5 * time.Second

func lookAtFeed(ctx context.Context, e *examined) []Finding {
	if e.cfg.Admin.Socket == "" {
		return []Finding{finding(LevelNote, "admin.socket: there is none, so that the server on this machine cannot be asked who follows its feed", "set it, to see them by authsvc watchers")}
	}
	all, err := askWatchers(ctx, e.cfg)
	if err != nil {
		return []Finding{finding(LevelNote, "admin.socket: who follows the trust feed is not known: "+err.Error(), "if a server is to run on this machine, start it")}
	}
	return judgeWatchers(all)
}

func judgeWatchers(all []Watcher) (found []Finding) {
	for _, w := range all {
		if age, err := time.ParseDuration(w.Age); err == nil && age > oldKnowledge {
			found = append(found, finding(LevelWarning, fmt.Sprintf("what the server told client %s at %s is %v old", w.Client, w.Address, age.Round(time.Millisecond)), "see why the server cannot read the database's revocation log"))
		}
	}
	if len(found) == 0 {
		found = append(found, fine("%d services follow the trust feed of the server on this machine", len(all)))
	}
	return found
}

// living are the servers that run, by the store's time.
func living(all []instance.Instance, now time.Time) []instance.Instance {
	return slices.DeleteFunc(slices.Clone(all), func(i instance.Instance) bool { return !i.Live(now) })
}

func lookAtInstances(ctx context.Context, e *examined) []Finding {
	all, now, err := e.db.Instances().List(ctx)
	if err != nil {
		return unanswered(err)
	}
	head, err := e.db.Revocations().Tail(ctx, math.MaxInt64) // its head alone
	if err != nil {
		return unanswered(err)
	}
	return judgeInstances(all, now, head)
}

// manyBehind is how many rows of the log a server may lack when it is asked at a bad moment: it reads them by thousands.
const manyBehind = 1000

func judgeInstances(all []instance.Instance, now time.Time, head revocation.Page) (found []Finding) {
	live := living(all, now)
	if len(live) == 0 {
		found = append(found, finding(LevelNote, "no server runs on this database", "start one"))
	}
	var versions []string
	for _, i := range live {
		found = append(found, judgeInstance(i, now, head)...)
		versions = append(versions, i.Version)
	}
	for _, i := range all {
		if !i.Live(now) {
			found = append(found, finding(LevelWarning, fmt.Sprintf("server %s on %s was last heard of at %s, and did not take its leave", i.ID, i.Host, i.SeenAt.UTC().Format(time.RFC3339)),
				"if it is to run, see whether it does: it was killed, hangs, or is cut off from the database (its log names this id); if it is not, this line goes after an hour"))
		}
	}
	slices.Sort(versions)
	if versions = slices.Compact(versions); len(versions) > 1 {
		found = append(found, finding(LevelNote, "the servers are of different releases: "+strings.Join(versions, ", "), "finish the rolling upgrade, if it is none that is under way"))
	}
	return found
}

func judgeInstance(i instance.Instance, now time.Time, head revocation.Page) (found []Finding) {
	name := fmt.Sprintf("server %s on %s (%s)", i.ID, i.Host, i.Version)
	behind := head.Head - i.Position
	const do = "see its log, and whether it reaches the database: what was revoked since is good there for as long"
	switch {
	case i.Epoch != head.Epoch:
		found = append(found, finding(LevelProblem, fmt.Sprintf("%s is in epoch %s, and the database in %s", name, hex.EncodeToString(i.Epoch[:4]), hex.EncodeToString(head.Epoch[:4])), "if this stays so for more than some seconds, start it anew").see(alertLag))
	case i.Lag > oldKnowledge:
		found = append(found, finding(LevelProblem, fmt.Sprintf("%s last read the revocation log %v before its last sign of life", name, i.Lag.Round(time.Millisecond)), do).see(alertLag))
	case behind > manyBehind:
		found = append(found, finding(LevelWarning, fmt.Sprintf("%s is %d rows of the revocation log behind", name, behind), do).see(alertLag))
	default:
		found = append(found, fine("%s runs since %s, its list %v old at its last sign of life", name, i.StartedAt.UTC().Format(time.RFC3339), i.Lag.Round(time.Millisecond)))
	}
	// Its clock was written together with the database's, a statement's way apart.
	if skew := judgeSkew("the clock of "+name, i.Clock.Sub(i.SeenAt), 100*time.Millisecond); skew[0].Level != LevelOK {
		found = append(found, skew[0].see(alertClock))
	}
	return found
}

func lookAtRedis(ctx context.Context, e *examined) []Finding {
	switch {
	case len(e.cfg.Redis.Addresses) > 0:
	case e.cfg.Database.URL == "":
		return nil // SQLite has one server, which needs none
	default:
		return []Finding{finding(LevelNote, "redis.addresses: there is none: each server counts failed sign-ins by itself, against its share of the limits", "with several servers, a Redis counts for all of them")}
	}
	o, err := redisOptions(e.cfg)
	if err != nil {
		return []Finding{finding(LevelProblem, err.Error(), "mend this setting: no server starts with it")}
	}
	o.Logger = slog.New(slog.DiscardHandler)
	s, err := redisstore.New(o)
	if err != nil {
		return []Finding{finding(LevelProblem, named("redis", err).Error(), "mend these settings: no server starts with them")}
	}
	begun := time.Now()
	err = s.Check(ctx)
	took := time.Since(begun)
	if closed := s.Close(); err == nil {
		err = closed
	}
	var setting *redisstore.SettingError
	switch {
	case errors.As(err, &setting):
		return []Finding{finding(LevelProblem, err.Error(), "mend this setting: no server starts with it")}
	case err != nil:
		return []Finding{finding(LevelWarning, "redis.addresses: Redis is away: "+strings.TrimPrefix(err.Error(), "redis.addresses: "), "start it; meanwhile each server counts failed sign-ins by itself, against its share of the limits, and nothing is lost")}
	}
	return []Finding{fine("Redis does all that it is asked for, within %v", took.Round(100*time.Microsecond))}
}
