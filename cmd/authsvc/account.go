package main

import (
	"flag"

	"github.com/authsvc/authsvc/internal/app"
)

// who is how the help names the argument that is a person.
const who = "USERNAME|ID"

func accountCommands() []command {
	return []command{
		{group: "account", name: "create", args: "USERNAME", about: "make an account; its password comes from a prompt or stdin", setup: none(accountCreate), asks: true},
		{group: "account", name: "list", about: "list the accounts by name", setup: accountList},
		{group: "account", name: "show", args: who, about: "show one account", setup: none(accountShow)},
		{group: "account", name: "disable", args: who, about: "end every session of an account and let it begin none", setup: none(accountDisable)},
		{group: "account", name: "enable", args: who, about: "let an account act again", setup: none(accountEnable)},
		{group: "account", name: "set-password", args: who, about: "set a password, from a prompt or stdin, and end every session", setup: none(accountSetPassword), asks: true},
		{group: "account", name: "delete", args: who, about: "remove an account and end every session", setup: none(accountDelete)},
	}
}

func accountCreate(r *call) error {
	if err := r.admin.UsernameFree(r.ctx, r.args[0]); err != nil {
		return err
	}
	password, err := r.password()
	if err != nil {
		return err
	}
	a, err := r.admin.CreateAccount(r.ctx, r.args[0], password)
	if err != nil {
		return err
	}
	return r.say(a, "created account %s, id %s", a.Username, a.ID)
}

// limitFlag is how many rows a list prints.
func limitFlag(f *flag.FlagSet) *int {
	return f.Int("limit", 100, "print at most this `many`; 0 prints all")
}

func checkLimit(limit int) error {
	if limit < 0 {
		return usage("-limit must not be negative")
	}
	return nil
}

func accountList(f *flag.FlagSet) action {
	limit := limitFlag(f)
	return func(r *call) error {
		if err := checkLimit(*limit); err != nil {
			return err
		}
		all, more, err := r.admin.Accounts(r.ctx, *limit)
		if err != nil {
			return err
		}
		var rows [][]string
		for _, a := range all {
			rows = append(rows, []string{a.Username, a.ID, a.State, when(a.CreatedAt)})
		}
		return r.list(all, more, "USERNAME ID STATE CREATED", rows)
	}
}

func accountShow(r *call) error {
	a, err := r.admin.Account(r.ctx, r.args[0])
	if err != nil {
		return err
	}
	return r.facts(a, accountFacts(a))
}

func accountFacts(a app.Account) [][2]string {
	return [][2]string{{"username", a.Username}, {"id", a.ID}, {"state", a.State}, {"cut off before", when(a.NotBefore)},
		{"created", when(a.CreatedAt)}, {"updated", when(a.UpdatedAt)}}
}

func accountDisable(r *call) error {
	a, err := r.admin.DisableAccount(r.ctx, r.args[0])
	if err != nil {
		return err
	}
	return r.say(a, "disabled account %s and ended its sessions", a.Username)
}

func accountEnable(r *call) error {
	a, err := r.admin.EnableAccount(r.ctx, r.args[0])
	if err != nil {
		return err
	}
	return r.say(a, "enabled account %s", a.Username)
}

func accountSetPassword(r *call) error {
	if _, err := r.admin.Account(r.ctx, r.args[0]); err != nil {
		return err
	}
	password, err := r.password()
	if err != nil {
		return err
	}
	a, err := r.admin.SetPassword(r.ctx, r.args[0], password)
	if err != nil {
		return err
	}
	return r.say(a, "set the password of account %s and ended its sessions", a.Username)
}

func accountDelete(r *call) error {
	a, err := r.admin.DeleteAccount(r.ctx, r.args[0])
	if err != nil {
		return err
	}
	return r.say(map[string]string{"deleted": a.Username, "account_id": a.ID}, "deleted account %s and ended its sessions", a.Username)
}
