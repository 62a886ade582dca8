// Package e2e_test runs scripts against the real binary: each file of testdata/script is one test.
package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// binaries is the folder of the built command; TestMain fills it.
var binaries string

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "authsvc-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "authsvc"), "github.com/authsvc/authsvc/cmd/authsvc")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the command:", err)
		return 1
	}
	binaries = dir
	return m.Run()
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", binaries+string(os.PathListSeparator)+env.Getenv("PATH"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"installation": installation,
			"begin":        begin,
			"exits":        exits,
			"capture":      capture,
			"ready":        ready,
			"soon":         soon,
			"login":        login,
			"active":       active,
		},
	})
}

// kek is the key file of an installation: ids and keys, the first one seals.
func kek(kekIDs ...string) string {
	var entries []string
	for _, id := range kekIDs {
		entries = append(entries, fmt.Sprintf(`{"id": %q, "key": %q}`, id, strings.Repeat(id[:1], 42)+"A"))
	}
	return `{"keys": [` + strings.Join(entries, ", ") + "]}\n"
}

// installation DIR makes what a first start of a server leaves: a database with an active and a pending key, the key
// files, the issuer, and a configuration file. "installation -kek ID... DIR" only writes the key file anew.
func installation(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: installation [-kek ID...] DIR")
	}
	dir := ts.MkAbs(args[len(args)-1])
	write := func(name, text string, mode os.FileMode) {
		path := filepath.Join(dir, name)
		ts.Check(os.WriteFile(path, []byte(text), mode))
		ts.Check(os.Chmod(path, mode))
	}
	if args[0] == "-kek" {
		write("kek.json", kek(args[1:len(args)-1]...), 0o600)
		return
	}
	ts.Check(os.MkdirAll(dir, 0o700))
	write("kek.json", kek("a"), 0o600)
	write("refresh.json", `{"keys": [{"id": 1, "key": "`+strings.Repeat("r", 42)+`A"}]}`+"\n", 0o600)
	write("issuer", "https://auth.example.com\n", 0o600)
	write("authsvc.yaml", fmt.Sprintf("issuer: https://auth.example.com\ndatabase: {path: %q}\nsecrets: {key_encryption_keys_file: %q, refresh_keys_file: %q}\n",
		filepath.Join(dir, "authsvc.db"), filepath.Join(dir, "kek.json"), filepath.Join(dir, "refresh.json")), 0o644)
	withStore(ts, dir, true, func(ctx context.Context, db *sqlstore.DB) error {
		secret := []byte(strings.Repeat("\x69\xa6\x9a", 10) + "\x69\xa0") // what "aaa…A" is in base64url
		sealer, err := keys.NewSealer([]keys.KEK{{ID: "a", Key: secret}})
		if err != nil {
			return err
		}
		ring, err := keys.NewRing(keys.Options{Store: db.Keys(), Sealer: sealer})
		if err != nil {
			return err
		}
		return ring.Bootstrap(ctx)
	})
}

func withStore(ts *testscript.TestScript, dir string, create bool, do func(context.Context, *sqlstore.DB) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	open := sqlstore.OpenExisting
	if create {
		open = sqlstore.Open
	}
	db, err := open(ctx, sqlstore.Options{Path: filepath.Join(dir, "authsvc.db")})
	ts.Check(err)
	err = do(ctx, db)
	ts.Check(errors.Join(err, db.Close()))
}

// begin DIR USERNAME CLIENT VAR begins a session and puts its id into the variable.
func begin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: begin DIR USERNAME CLIENT VAR")
	}
	withStore(ts, ts.MkAbs(args[0]), false, func(ctx context.Context, db *sqlstore.DB) error {
		a, err := db.Accounts().ByUsername(ctx, args[1])
		if err != nil {
			return err
		}
		s, _, err := db.Sessions().Create(ctx, session.Create{TTL: time.Hour, AccountVersion: a.Version, MaxPerAccount: 100,
			Session: session.Session{ID: ids.New[ids.Session](), Account: a.ID, Client: ids.Client(args[2]), KeyID: 1, IdleTTL: time.Hour,
				Audiences: []string{"https://api.example.com"}, AMR: []string{"pwd"}, DeviceName: "laptop", IP: "192.0.2.1"}}, journal.Journal{})
		ts.Setenv(args[3], string(s.ID))
		return err
	})
}

// exits CODE COMMAND... runs a command that must end with the code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	if neg || err != nil || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARGUMENT...]")
	}
	got := 0
	var exit *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	default:
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// capture VAR REGEXP puts what the first group of the pattern matches in the last stdout into the variable.
func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: capture VAR REGEXP")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	m := re.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) < 2 {
		ts.Fatalf("stdout does not match %s", args[1])
	}
	ts.Setenv(args[0], m[1])
}
