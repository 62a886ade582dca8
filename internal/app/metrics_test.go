package app_test

import (
	"net/http/httptest"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/app"
	"github.com/authsvc/authsvc/internal/service"
)

var _ service.Events = (*app.Meter)(nil)

func TestLoginsAreShownByHowTheyEnded(t *testing.T) {
	t.Parallel()
	m, shown, err := app.NewMeter()
	if err != nil {
		t.Fatal(err)
	}
	series := func() []string {
		w := httptest.NewRecorder()
		shown.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		all := regexp.MustCompile(`(?m)^authsvc_logins_total.*$`).FindAllString(w.Body.String(), -1)
		slices.Sort(all)
		return all
	}
	if diff := cmp.Diff([]string{
		`authsvc_logins_total{outcome="invalid_credentials"} 0`,
		`authsvc_logins_total{outcome="ok"} 0`,
		`authsvc_logins_total{outcome="overloaded"} 0`,
		`authsvc_logins_total{outcome="rate_limited"} 0`,
	}, series()); diff != "" {
		t.Errorf("before the first login (-want +got)\n%s", diff)
	}
	for outcome, n := range map[string]int{"ok": 1, "invalid_credentials": 2, "rate_limited": 3, "overloaded": 4, "client_invalid": 1} {
		for range n {
			m.Login(outcome)
		}
	}
	if diff := cmp.Diff([]string{
		`authsvc_logins_total{outcome="client_invalid"} 1`,
		`authsvc_logins_total{outcome="invalid_credentials"} 2`,
		`authsvc_logins_total{outcome="ok"} 1`,
		`authsvc_logins_total{outcome="overloaded"} 4`,
		`authsvc_logins_total{outcome="rate_limited"} 3`,
	}, series()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestWhatAlertsAreMadeOfIsThereFromTheStart(t *testing.T) {
	t.Parallel()
	m, shown, err := app.NewMeter()
	if err != nil {
		t.Fatal(err)
	}
	series := func() []string {
		w := httptest.NewRecorder()
		shown.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		all := regexp.MustCompile(`(?m)^authsvc_(refreshes|introspections|panics)_total.*$`).FindAllString(w.Body.String(), -1)
		slices.Sort(all)
		return all
	}
	if diff := cmp.Diff([]string{
		`authsvc_introspections_total{outcome="active"} 0`,
		`authsvc_introspections_total{outcome="inactive"} 0`,
		`authsvc_panics_total 0`,
		`authsvc_refreshes_total{outcome="ok"} 0`,
		`authsvc_refreshes_total{outcome="refresh_reused"} 0`,
		`authsvc_refreshes_total{outcome="refresh_superseded"} 0`,
	}, series()); diff != "" {
		t.Errorf("before the first call (-want +got)\n%s", diff)
	}
	m.Refresh("refresh_reused")
	m.Introspect("inactive", 7)
	if diff := cmp.Diff([]string{
		`authsvc_introspections_total{outcome="active"} 0`,
		`authsvc_introspections_total{outcome="inactive"} 7`,
		`authsvc_panics_total 0`,
		`authsvc_refreshes_total{outcome="ok"} 0`,
		`authsvc_refreshes_total{outcome="refresh_reused"} 1`,
		`authsvc_refreshes_total{outcome="refresh_superseded"} 0`,
	}, series()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
