package service_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/fault"
)

func TestARefusedChangeOfPasswordNamesItsField(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	me := c.as(t, c.login(t, "ada"))
	const next = "another horse, another staple"
	for _, tt := range []struct {
		name, old, next string
		want            fault.Reason
		field           string
	}{
		{"no old password", "", next, fault.FieldInvalid, "old_password"},
		{"L03 an old password beyond the caps", strings.Repeat("e", 257), next, fault.FieldInvalid, "old_password"},
		{"an old password that is not text", "canary\xff", next, fault.FieldInvalid, "old_password"},
		{"R46 a short new password", secretly, "too short", fault.PasswordRejected, "new_password"},
		{"R46 a new password beyond the caps", secretly, strings.Repeat("e", 257), fault.PasswordRejected, "new_password"},
		{"R48 a common new password", secretly, "passwordpassword", fault.PasswordRejected, "new_password"},
		{"R48 a new password made of the username", secretly, strings.Repeat("ada", 6), fault.PasswordRejected, "new_password"},
	} {
		err := c.accounts.ChangePassword(t.Context(), me, tt.old, tt.next)
		wantReason(t, err, tt.want)
		f := fault.From(err)
		var fields []string
		for _, v := range f.Violations {
			fields = append(fields, v.Field)
		}
		if diff := cmp.Diff([]string{tt.field}, fields); diff != "" || strings.HasPrefix(f.Message, "password:") || strings.Contains(f.Message, "canary") {
			t.Errorf("%s: %q of the fields (-want +got)\n%s", tt.name, f.Message, diff)
		}
	}
	if err := c.accounts.ChangePassword(t.Context(), me, secretly, next); err != nil {
		t.Errorf("the twin: %v", err)
	}
}
