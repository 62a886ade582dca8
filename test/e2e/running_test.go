package e2e_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience bounds every wait for a condition; it is long, since it only matters when something is broken.
const patience = 60 * time.Second

// until asks again and again whether a condition holds.
func until(ts *testscript.TestScript, what string, holds func(context.Context) bool) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds(ctx) {
		select {
		case <-ctx.Done():
			ts.Fatalf("waited in vain until %s", what)
		case <-tick.C:
		}
	}
}

// ready DIR waits until the server of serve -dev answers, and puts what dev.json says into variables of the same names.
func ready(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ready DIR")
	}
	path := filepath.Join(ts.MkAbs(args[0]), "dev.json")
	until(ts, "the server is ready", func(ctx context.Context) bool {
		content, err := os.ReadFile(path)
		if err != nil {
			return false
		}
		var dev map[string]string
		ts.Check(json.Unmarshal(content, &dev))
		for name, value := range dev {
			ts.Setenv(name, value)
		}
		code, _ := send(ctx, http.MethodGet, dev["ops"]+"/readyz", "", nil)
		return code == http.StatusOK
	})
}

// soon PATTERN PROGRAM ARG... runs a program until what it prints matches.
func soon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: soon pattern program [arg...]")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	until(ts, "it prints "+args[0], func(context.Context) bool {
		return ts.Exec(args[1], args[2:]...) == nil && pattern.MatchString(ts.ReadFile("stdout"))
	})
}

// send gives the status and the JSON body of an answer, or zero where there was none.
func send(ctx context.Context, method, url, authorization string, body map[string]string) (int, map[string]any) {
	text, err := json.Marshal(body)
	if err != nil {
		return 0, nil
	}
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(text))
	if err != nil {
		return 0, nil
	}
	r.Header.Set("Content-Type", "application/json")
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	answer := map[string]any{}
	if json.NewDecoder(resp.Body).Decode(&answer) != nil {
		answer = nil
	}
	return resp.StatusCode, answer
}

// login VAR signs the demo account in, and puts the access token, its session, jti and account into VAR, VAR_SID, VAR_JTI and
// VAR_SUB. It asks again while the answer is 503, as right after all signing keys were revoked. "! login" waits until it is
// refused with 401.
func login(ts *testscript.TestScript, neg bool, args []string) {
	attempt := func(ctx context.Context) (int, map[string]any) {
		return send(ctx, http.MethodPost, ts.Getenv("http")+"/v1/auth/login", "", map[string]string{"username": ts.Getenv("username"),
			"password": ts.Getenv("password"), "client_id": ts.Getenv("public_client_id")})
	}
	if neg {
		until(ts, "a login is refused", func(ctx context.Context) bool {
			code, _ := attempt(ctx)
			return code == http.StatusUnauthorized
		})
		return
	}
	if len(args) != 1 {
		ts.Fatalf("usage: [!] login VAR")
	}
	var code int
	var answer map[string]any
	until(ts, "a login is decided", func(ctx context.Context) bool {
		code, answer = attempt(ctx)
		return code != http.StatusServiceUnavailable
	})
	token, _ := answer["access_token"].(string)
	if code != http.StatusOK || token == "" {
		ts.Fatalf("login: %d %v", code, answer["message"])
	}
	var claims struct{ JTI, SID, Sub string }
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	ts.Check(err)
	ts.Check(json.Unmarshal(payload, &claims))
	for name, value := range map[string]string{"": token, "_JTI": claims.JTI, "_SID": claims.SID, "_SUB": claims.Sub} {
		ts.Setenv(args[0]+name, value)
	}
}

// active TOKEN waits until introspection says so; "! active" until it says no.
func active(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] active TOKEN")
	}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(ts.Getenv("service_client_id")+":"+ts.Getenv("service_client_secret")))
	until(ts, fmt.Sprintf("the token is active: %v", !neg), func(ctx context.Context) bool {
		code, answer := send(ctx, http.MethodPost, ts.Getenv("http")+"/v1/auth/introspect", basic, map[string]string{"token": args[0]})
		return code == http.StatusOK && answer["active"] == !neg
	})
}
