package rest_test

import (
	"net/http"
	"strings"
	"testing"
)

func TestTheAccessLogNamesTheCallersTrace(t *testing.T) {
	t.Parallel()
	const id = "0af7651916cd43dd8448eb211c80319c"
	for _, tt := range []struct{ name, header, want string }{
		{"a trace", "00-" + id + "-b7ad6b7169203331-01", id},
		{"a trace of a later version", "cc-" + id + "-b7ad6b7169203331-01-more", id},
		{"none", "", ""},
		{"words", strings.Repeat(canary, 8), ""},
		{"words of the right form", "00-" + strings.Repeat("canary__", 4) + "-b7ad6b7169203331-01", ""},
		{"capitals", "00-" + strings.ToUpper(id) + "-b7ad6b7169203331-01", ""},
		{"zeros", "00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01", ""},
		{"a short one", "00-" + id + "-b7ad", ""},
	} {
		h := open(t, nil)
		h.do(request(func(r *http.Request) {
			if tt.header != "" {
				r.Header.Set("Traceparent", tt.header)
			}
		}))
		log := h.log.String()
		if !strings.Contains(log, `"trace_id":"`+tt.want+`"`) || strings.Contains(log, "canary__") || strings.Contains(log, canary) {
			t.Errorf("%s: the log is %s, want the trace %q", tt.name, log, tt.want)
		}
	}
}
