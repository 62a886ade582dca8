package guard_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/authsvc/authsvc/guard"
)

// TestG10AnotherSpellingIsNotLetThroughByDefault has a guard before a mux, which finds the same handler by other spellings. All is
// called without a token.
func TestG10AnotherSpellingIsNotLetThroughByDefault(t *testing.T) {
	t.Parallel()
	table := map[string]guard.Rule{
		"/admin": {Scopes: []string{"admin"}}, "GET /report": {Scopes: []string{"admin"}}, "/a%20b/": {Scopes: []string{"admin"}}, "/": {Public: true},
	}
	inner := http.NewServeMux()
	reached := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for _, pattern := range []string{"/admin", "GET /report", "POST /report", "/a%20b/", "/news/{$}", "/files/{name}", "/{$}"} {
		inner.Handle(pattern, reached)
	}
	byDefault := newGuard(t, guard.Options{Rules: table, Default: guard.Rule{Public: true}}).Middleware(inner)
	byPattern := http.NewServeMux()
	byPattern.Handle("/", newGuard(t, guard.Options{Rules: table}).Middleware(inner)) // the rule of "/" is that of all beneath
	for _, c := range []struct {
		name, method, path string
		status             int
	}{
		{"the exact path", http.MethodGet, "/admin", 401},
		{"G10 an escaped letter", http.MethodGet, "/%61dmin", 403},
		{"G10 an escaped letter, by POST", http.MethodPost, "/%61dmin", 403},
		{"G10 two slashes", http.MethodGet, "//admin", 403},
		{"G10 a dot segment", http.MethodGet, "/x/../admin", 403},
		{"G10 an escaped dot segment", http.MethodGet, "/x/%2e%2e/admin", 403},
		{"G10 HEAD, which a mux takes for GET", http.MethodHead, "/report", 403},
		{"G10 HEAD and an escaped letter", http.MethodHead, "/%72eport", 403},
		{"the method that the table names", http.MethodGet, "/report", 401},
		{"the twin: another method is not named", http.MethodPost, "/report", 204},
		{"a rule with an escape", http.MethodGet, "/a%20b/", 401},
		{"G10 a rule with an escape, and one more", http.MethodGet, "/%61%20b/", 403},
		{"the twin: a path without a rule", http.MethodGet, "/news/", 204},
		{"the twin: HEAD of one", http.MethodHead, "/news/", 204},
		{"the twin: an escape in one", http.MethodGet, "/n%65ws/", 204},
		{"the twin: an escaped slash in one", http.MethodGet, "/files/a%2Fadmin", 204},
		{"the twin: the root", http.MethodHead, "/", 204},
	} {
		for kind, h := range map[string]http.Handler{"by default": byDefault, "by a wider pattern": byPattern} {
			r := httptest.NewRequestWithContext(t.Context(), c.method, "/", nil)
			var err error
			if r.URL, err = url.ParseRequestURI(c.path); err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			redirected := kind == "by a wider pattern" && w.Code == http.StatusTemporaryRedirect && c.status == http.StatusForbidden
			if w.Code != c.status && !redirected {
				t.Errorf("%s, %s: %s %s gets %d, want %d", c.name, kind, c.method, c.path, w.Code, c.status)
			}
		}
	}
}

// TestTheTwinAPatternIsTheRulesOwn has the guard behind the mux, which has found the pattern that the table names.
func TestTheTwinAPatternIsTheRulesOwn(t *testing.T) {
	t.Parallel()
	g := newGuard(t, guard.Options{Rules: map[string]guard.Rule{
		"GET /report": {Public: true}, "/orders/{id}": {Public: true}, "POST /orders/{id}": {Scopes: []string{"orders.write"}}, "/orders/new": {Scopes: []string{"orders.write"}},
	}})
	mux := http.NewServeMux()
	for _, pattern := range []string{"GET /report", "/orders/{id}", "POST /orders/{id}"} {
		mux.Handle(pattern, g.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })))
	}
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{http.MethodGet, "/report", 204}, {http.MethodHead, "/report", 204}, {http.MethodGet, "/%72eport", 204}, {http.MethodGet, "/orders/%37", 204},
		{http.MethodPost, "/orders/7", 401}, {http.MethodGet, "/orders/new", 401}, {http.MethodGet, "/orders/n%65w", 403},
	} {
		r := httptest.NewRequestWithContext(t.Context(), c.method, c.path, nil)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("%s %s: got %d, want %d", c.method, c.path, w.Code, c.status)
		}
	}
}

// TestAGuardsRulesAreItsOwn changes a table after its guard was made.
func TestAGuardsRulesAreItsOwn(t *testing.T) {
	t.Parallel()
	scopes := []string{"orders.write"}
	fallback := []string{"orders.write"}
	g := newGuard(t, guard.Options{Rules: map[string]guard.Rule{"/orders": {Scopes: scopes}}, Default: guard.Rule{Scopes: fallback}})
	scopes[0], fallback[0] = "orders.read", "orders.read" // which the token has
	for _, path := range []string{"/orders", "/other"} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		r.Header.Set("Authorization", "Bearer "+token(nil))
		w := httptest.NewRecorder()
		g.Middleware(http.NotFoundHandler()).ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: got %d", path, w.Code)
		}
	}
}

// TestR56AMisspelledKeyIsRefused: no call could ever have it, and what it was to guard would be left to Default.
func TestR56AMisspelledKeyIsRefused(t *testing.T) {
	t.Parallel()
	for key, good := range map[string]bool{
		"/orders": true, "GET /orders": true, "GET /orders/{id}": true, "orders.example/": true, "GET orders.example/x y": true, "/": true,
		"/shop.v1.Orders/List": true,
		"get /orders":          false, "Get /orders": false, " /orders": false, "GET  /orders": false, "GET\t/orders": false, "GET": false, "": false, "GET POST /orders": false,
	} {
		_, err := guard.New(guard.Options{Verifier: verifier(true), Rules: map[string]guard.Rule{key: {Authenticated: true}}, Default: guard.Rule{Public: true}})
		if (err == nil) != good {
			t.Errorf("%q: %v", key, err)
		}
	}
}
