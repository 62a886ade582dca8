package account_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/fault"
)

func TestCanonicalIsOneFormOfAName(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, in, want string }{
		{"as it is", "ada", "ada"},
		{"capitals are folded", "Ada.LOVELACE", "ada.lovelace"},
		{"full width becomes ASCII", "\uff21\uff24\uff21", "ada"},
		{"a decomposed letter is composed", "rene\u0301", "ren\u00e9"},
		{"another script", "\u0430\u0434\u0430", "\u0430\u0434\u0430"},
		{"128 bytes", strings.Repeat("a", 128), strings.Repeat("a", 128)},
	} {
		if got, err := account.Canonical(tt.in); got != tt.want || err != nil {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
	}
	for name, in := range map[string]string{"nothing": "", "129 bytes": strings.Repeat("a", 129), "a space": "ada b", "a line break": "ada\n", "D20 a NUL": "ada\x00",
		"broken UTF-8": "ada\xff", "more than 128 bytes once composed": strings.Repeat("\ufb03", 43), "two directions": "a\u05d0"} {
		if got, err := account.Canonical(in); fault.From(err).Kind != fault.Invalid || got != "" {
			t.Errorf("%s is taken as %q, %v", name, got, err)
		}
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"ada", "Ada", "\uff21\uff24\uff21", "rene\u0301", "a b", "a\x00", "\xff", "", strings.Repeat("a", 129), "\u0130", "\u05d0\u05d1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := account.Canonical(in)
		if err != nil {
			if fault.From(err).Kind != fault.Invalid || got != "" {
				t.Errorf("%q gives %q and %v", in, got, err)
			}
			return
		}
		if got == "" || len(got) > account.MaxUsername || !utf8.ValidString(got) || strings.ContainsAny(got, " \t\r\n\x00") {
			t.Errorf("%q is taken as %q", in, got)
		}
		if again, err := account.Canonical(got); err != nil || again != got {
			t.Errorf("%q is taken as %q, and that as %q (%v)", in, got, again, err)
		}
	})
}
