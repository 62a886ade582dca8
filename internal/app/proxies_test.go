package app_test

import (
	"net/http/httptest"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/app"
)

func TestAnswersToProxiesAreShownByOutcome(t *testing.T) {
	t.Parallel()
	m, shown, err := app.NewMeter()
	if err != nil {
		t.Fatal(err)
	}
	for _, outcome := range []string{"", "", "TOKEN_REVOKED", "MISCONFIGURED", "A_REASON_OF_TOMORROW"} {
		app.Proxied(m, outcome)
	}
	w := httptest.NewRecorder()
	shown.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	got := regexp.MustCompile(`(?m)^authsvc_forward_auth_total.*$`).FindAllString(w.Body.String(), -1)
	slices.Sort(got)
	var want []string
	for _, line := range []string{`misconfigured"} 1`, `ok"} 2`, `other"} 1`, `permission_denied"} 0`, `replica_stale"} 0`, `scope_insufficient"} 0`,
		`token_expired"} 0`, `token_invalid"} 0`, `token_revoked"} 1`, `undecided"} 0`} {
		want = append(want, `authsvc_forward_auth_total{outcome="`+line)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
