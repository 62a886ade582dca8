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

func clientCommands() []command {
	return []command{
		{group: "client", name: "create", about: "register a client; a confidential one's secret is printed once", setup: clientCreate},
		{group: "client", name: "list", about: "list the clients by id", setup: clientList},
		{group: "client", name: "show", args: "ID", about: "show one client", setup: none(clientShow)},
		{group: "client", name: "rotate-secret", args: "ID", about: "make a new secret, printed once, beside the old one for a while", setup: clientRotate},
		{group: "client", name: "delete", args: "ID", about: "remove a client and end its sessions and tokens", setup: none(clientDelete)},
	}
}

// words is a flag that may stand several times and hold several words.
type words []string

// String gives the words as they would be written.
func (w *words) String() string { return strings.Join(*w, " ") }

// Set adds the words of one occurrence.
func (w *words) Set(text string) error {
	*w = append(*w, strings.Fields(text)...)
	return nil
}

func clientCreate(f *flag.FlagSet) action {
	var n app.NewClient
	f.StringVar(&n.Kind, "kind", "", "`kind`: public (an app, which can keep no secret) or confidential (a service)")
	f.StringVar(&n.Name, "name", "", "a `name` for people")
	f.StringVar(&n.ID, "id", "", "its `id`; a random one if empty")
	f.Var((*words)(&n.Audiences), "audience", "an `audience` that it may ask for; at least one; may be repeated")
	f.Var((*words)(&n.DefaultAudiences), "default-audience", "an `audience` that it gets when it names none; may be repeated")
	f.Var((*words)(&n.Scopes), "scope", "a `scope` that it may ask for; may be repeated")
	f.Var((*words)(&n.DefaultScopes), "default-scope", "a `scope` that it gets when it names none; may be repeated")
	f.DurationVar(&n.AccessTTL, "access-ttl", 0, "how long an access token lives; at most 15m (default 5m)")
	f.DurationVar(&n.SessionIdleTTL, "session-idle-ttl", 0, "how long a session lives without a refresh (default 336h)")
	f.DurationVar(&n.SessionTTL, "session-ttl", 0, "how long a session lives at most (default 2160h)")
	f.DurationVar(&n.ReuseWindow, "reuse-window", 0, "how long a refresh may be repeated; 10s to 60s (default 30s)")
	return func(r *call) error {
		if n.Kind != "public" && n.Kind != "confidential" {
			return usage("-kind must be public or confidential")
		}
		for _, d := range []time.Duration{n.AccessTTL, n.SessionIdleTTL, n.SessionTTL, n.ReuseWindow} {
			if d < 0 {
				return usage("a duration must not be negative")
			}
		}
		c, err := r.admin.CreateClient(r.ctx, n)
		if err != nil {
			return flagged(err, "-id")
		}
		return r.secret(c)
	}
}

// flagged names the flag where an error names the field that it fills; id is how the command takes the client's id.
func flagged(err error, id string) error {
	field, problem, ok := app.Violation(err)
	if !ok {
		return err
	}
	name := "-" + strings.ReplaceAll(field, "_", "-")
	switch field {
	case "client_id":
		name = id
	case "audiences", "default_audiences", "scopes", "default_scopes":
		name = strings.TrimSuffix(name, "s")
	}
	return fmt.Errorf("%s: %s", name, problem)
}

// secret prints a client with the secret that was just made.
func (r *call) secret(c app.Client) error {
	err := r.facts(c, clientFacts(c))
	if err != nil && c.Secret != "" {
		return fmt.Errorf("client %s has its new secret, but it could not be shown; client rotate-secret makes another: %w", c.ID, err)
	}
	if err != nil || c.Secret == "" || r.output == "json" {
		return err
	}
	_, err = io.WriteString(r.stderr, "authsvc: keep the secret now; it is not shown again\n")
	return err
}

func clientFacts(c app.Client) [][2]string {
	facts := [][2]string{{"id", c.ID}, {"secret", c.Secret}, {"name", c.Name}, {"kind", c.Kind},
		{"audiences", strings.Join(c.Audiences, " ")}, {"default audiences", strings.Join(c.DefaultAudiences, " ")},
		{"scopes", strings.Join(c.Scopes, " ")}, {"default scopes", strings.Join(c.DefaultScopes, " ")},
		{"access ttl", c.AccessTTL}, {"session idle ttl", c.SessionIdleTTL}, {"session ttl", c.SessionTTL}, {"reuse window", c.ReuseWindow},
		{"cut off before", when(c.NotBefore)}, {"created", when(c.CreatedAt)}, {"updated", when(c.UpdatedAt)}}
	for i, s := range c.Secrets {
		text := "made " + when(s.CreatedAt)
		if !s.ExpiresAt.IsZero() {
			text += ", valid until " + when(s.ExpiresAt)
		}
		facts = append(facts, [2]string{"secret " + strconv.Itoa(i+1), text})
	}
	return facts
}

func clientList(f *flag.FlagSet) action {
	limit := limitFlag(f)
	return func(r *call) error {
		if err := checkLimit(*limit); err != nil {
			return err
		}
		all, more, err := r.admin.Clients(r.ctx, *limit)
		if err != nil {
			return err
		}
		var rows [][]string
		for _, c := range all {
			rows = append(rows, []string{c.ID, c.Kind, c.Name, strings.Join(c.Audiences, " "), strings.Join(c.Scopes, " ")})
		}
		return r.list(all, more, "ID KIND NAME AUDIENCES SCOPES", rows)
	}
}

func clientShow(r *call) error {
	c, err := r.admin.Client(r.ctx, r.args[0])
	if err != nil {
		return err
	}
	return r.facts(c, clientFacts(c))
}

func clientRotate(f *flag.FlagSet) action {
	overlap := f.Duration("overlap", 24*time.Hour, "how long the old secret stays valid; 0 ends it at once, at most 720h")
	return func(r *call) error {
		c, err := r.admin.RotateClientSecret(r.ctx, r.args[0], *overlap)
		if err != nil {
			return flagged(err, "ID")
		}
		return r.secret(c)
	}
}

func clientDelete(r *call) error {
	if err := r.admin.DeleteClient(r.ctx, r.args[0]); err != nil {
		return err
	}
	return r.say(map[string]string{"deleted": r.args[0]}, "deleted client %s and ended its sessions and tokens", r.args[0])
}
