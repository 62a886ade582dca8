package main

import (
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/authsvc/authsvc/internal/app"
)

func sessionCommands() []command {
	return []command{
		{group: "session", name: "list", about: "list live sessions, newest first", setup: sessionList},
		{group: "session", name: "revoke", args: "ID", about: "end a session, its refresh token and its access tokens", setup: none(sessionRevoke)},
	}
}

func sessionList(f *flag.FlagSet) action {
	account := f.String("account", "", "only those of this account, by its `username or id`")
	limit := limitFlag(f)
	return func(r *call) error {
		if err := checkLimit(*limit); err != nil {
			return err
		}
		all, more, err := r.admin.Sessions(r.ctx, *account, *limit)
		if err != nil {
			return err
		}
		var rows [][]string
		for _, s := range all {
			rows = append(rows, []string{s.ID, s.Account, s.Client, when(s.CreatedAt), when(s.LastUsedAt), when(s.ExpiresAt), s.IP, s.DeviceName})
		}
		return r.list(all, more, "ID ACCOUNT CLIENT CREATED USED EXPIRES IP DEVICE", rows)
	}
}

func sessionRevoke(r *call) error { return r.revokeSession(r.args[0]) }

func (r *call) revokeSession(id string) error {
	known, err := r.admin.RevokeSession(r.ctx, id)
	if err != nil {
		return err
	}
	answer := map[string]any{"kind": "session", "revoked": id, "known": known}
	if !known {
		return r.say(answer, "there is no session %s here; its access tokens are revoked all the same", id)
	}
	return r.say(answer, "ended session %s", id)
}

func revokeCommands() []command {
	return []command{{group: "revoke", about: "cut off whatever began until now: give exactly one of the flags", setup: revoke}}
}

func revoke(f *flag.FlagSet) action {
	subject := f.String("sub", "", "every session and token of this account, by its `username or id`")
	client := f.String("client", "", "every session and token of this client `id`")
	session := f.String("sid", "", "this session `id`")
	token := f.String("jti", "", "the access token with this `id`")
	everything := f.Bool("everything", false, "every session and every token")
	return func(r *call) error {
		given := 0
		f.Visit(func(f *flag.Flag) {
			switch f.Name {
			case "sub", "client", "sid", "jti", "everything":
				given++
			}
		})
		if given != 1 {
			return usage("give exactly one of -sub USERNAME|ID, -client ID, -sid ID, -jti ID and -everything")
		}
		switch {
		case *subject != "":
			id, n, err := r.admin.RevokeSubject(r.ctx, *subject)
			return r.cutOff("account", id, n, err)
		case *client != "":
			n, err := r.admin.RevokeClient(r.ctx, *client)
			return r.cutOff("client", *client, n, err)
		case *session != "":
			return r.revokeSession(*session)
		case *token != "":
			if err := r.admin.RevokeToken(r.ctx, *token); err != nil {
				return err
			}
			return r.say(map[string]string{"kind": "token", "revoked": *token}, "revoked access token %s", *token)
		case *everything:
			n, err := r.admin.RevokeEverything(r.ctx)
			return r.cutOff("everything", "", n, err)
		default:
			return usage("the flag needs a value")
		}
	}
}

func (r *call) cutOff(kind, id string, n int, err error) error {
	if err != nil {
		return err
	}
	answer := map[string]any{"kind": kind, "ended_sessions": n}
	if id != "" {
		answer["revoked"] = id
	}
	return r.say(answer, "cut off %s; ended %d live sessions", strings.TrimSpace(kind+" "+id), n)
}

func keyCommands() []command {
	return []command{
		{group: "keys", name: "list", about: "list the signing keys", setup: none(keysList)},
		{group: "keys", name: "rotate", about: "make the pending key the signer", setup: keysRotate},
		{group: "keys", name: "revoke", args: "[KID]", about: "make a key compromised: what it signed is dead", setup: keysRevoke},
		{group: "keys", name: "rewrap", about: "seal the private halves with the first key-encryption key", setup: none(keysRewrap)},
	}
}

func keysList(r *call) error {
	all, err := r.admin.Keys(r.ctx)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, k := range all {
		seal := "current"
		if !k.SealCurrent {
			seal = "older"
		}
		rows = append(rows, []string{k.ID, k.State, when(k.PublishedAt), when(k.ActivatedAt), when(k.RetiredAt), when(k.GoneAt), seal})
	}
	if err := r.list(all, false, "KID STATE PUBLISHED ACTIVATED RETIRED GONE SEAL", rows); err != nil || r.output == "json" {
		return err
	}
	for _, k := range all {
		if k.Holding == nil {
			continue
		}
		for _, line := range holders(k.ID, k.Holding) {
			if _, err := fmt.Fprintln(r.stdout, clean(line)); err != nil {
				return err
			}
		}
	}
	return nil
}

func keysRotate(f *flag.FlagSet) action {
	now := f.Bool("now", false, "even if the pending key is not published long enough: services that poll the key set may refuse tokens for up to 5 minutes")
	return func(r *call) error {
		kid, held, err := r.admin.RotateKeys(r.ctx, *now)
		if err != nil {
			return err
		}
		if held == nil {
			return r.say(map[string]string{"signer": kid}, "key %s is the signer; a running server follows within a second", kid)
		}
		if r.output != "json" && (held.Unknown != "" || len(held.Lacking) > 0) {
			for _, line := range holders(kid, held) {
				fmt.Fprintf(r.stderr, "authsvc: warning: %s\n", clean(line))
			}
		}
		return r.say(map[string]any{"signer": kid, "feed": held},
			"key %s is the signer; a running server follows within a second, and services that poll the key set may refuse its tokens for up to 5 minutes", kid)
	}
}

func keysRevoke(f *flag.FlagSet) action {
	all := f.Bool("all", false, "every key: the table of keys or the key-encryption key has leaked")
	return func(r *call) error {
		switch {
		case (len(r.args) == 0) == !*all:
			return usage("give either KID or -all")
		case *all:
			kid, err := r.admin.RevokeAllKeys(r.ctx)
			if err != nil {
				return err
			}
			return r.say(map[string]string{"revoked": "all", "signer": kid}, "revoked every key; the new key %s is the signer; a running server follows within a second, services that poll the key set within 5 minutes", kid)
		}
		if err := r.admin.RevokeKey(r.ctx, r.args[0]); err != nil {
			return err
		}
		return r.say(map[string]string{"revoked": r.args[0]}, "revoked key %s; a running server follows within a second, services that poll the key set within 5 minutes", r.args[0])
	}
}

func keysRewrap(r *call) error {
	n, err := r.admin.RewrapKeys(r.ctx)
	if err != nil {
		return err
	}
	return r.say(map[string]int{"resealed": n}, "sealed %d keys anew", n)
}

func auditCommands() []command {
	return []command{{group: "audit", name: "list", about: "list audit records, newest first", setup: auditList}}
}

func auditList(f *flag.FlagSet) action {
	var filter app.AuditFilter
	f.StringVar(&filter.Event, "event", "", "only this `event`, such as login")
	f.StringVar(&filter.Subject, "subject", "", "only what was done to this `username or id`: of an account, a client, a session, a token or a key")
	f.Int64Var(&filter.Before, "before", 0, "only records before this `id`")
	since := f.String("since", "", "only records since this `time`: RFC 3339, or an age such as 24h")
	limit := limitFlag(f)
	return func(r *call) (err error) {
		if err := checkLimit(*limit); err != nil {
			return err
		}
		if filter.Before < 0 {
			return usage("-before must be the id of a record")
		}
		if filter.Since, err = sinceTime(*since, time.Now()); err != nil {
			return err
		}
		all, more, err := r.admin.Audit(r.ctx, filter, *limit)
		if err != nil {
			return err
		}
		var rows [][]string
		for _, a := range all {
			rows = append(rows, []string{strconv.FormatInt(a.ID, 10), when(a.Time), a.Event, a.Outcome, a.Reason, a.Actor, a.Subject, a.Client, a.Session, a.IP})
		}
		return r.list(all, more, "ID TIME EVENT OUTCOME REASON ACTOR SUBJECT CLIENT SESSION IP", rows)
	}
}

func sinceTime(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if age, err := time.ParseDuration(text); err == nil && age >= 0 {
		return now.Add(-age), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, usage("-since must be a time such as 2026-01-31T12:00:00Z, or an age such as 24h")
	}
	return at, nil
}

func configCommands() []command {
	return []command{
		{group: "config", name: "print", about: "print what holds: defaults, the file, and the environment", setup: none(configPrint), storeless: true, homeless: true},
		{group: "config", name: "check", about: "say what is wrong before a server starts: settings, files, certificates, the database", setup: configCheck, storeless: true, homeless: true},
	}
}

func configPrint(r *call) error {
	cfg, err := app.LoadConfig(r.store)
	if err != nil {
		return err
	}
	return r.print(cfg, func(w io.Writer) error { return cfg.Print(w) })
}

func configCheck(f *flag.FlagSet) action {
	offline := f.Bool("offline", false, "look at settings and files only: ask no database")
	return func(r *call) error {
		cfg, err := app.LoadConfig(r.store)
		if err != nil {
			return err
		}
		if err := app.CheckSetup(r.ctx, cfg, *offline); err != nil {
			return err
		}
		cautions := cfg.Cautions()
		for _, c := range cautions {
			fmt.Fprintln(r.stderr, "authsvc: warning: "+clean(c))
		}
		return r.print(struct {
			OK       bool     `json:"ok"`
			Warnings []string `json:"warnings,omitempty"`
		}{true, cautions}, func(w io.Writer) error {
			_, err := io.WriteString(w, "the configuration is sound\n")
			return err
		})
	}
}
