package config_test

import (
	"testing"

	"github.com/authsvc/authsvc/internal/config"
	"github.com/authsvc/authsvc/internal/oauth2"
)

// TestAnIssuerThatIsSoundServes holds the two readers of an issuer together: what config check finds sound must not keep the
// server from starting.
func TestAnIssuerThatIsSoundServes(t *testing.T) {
	t.Parallel()
	for _, issuer := range []string{
		"https://auth.example.com", "https://auth.example.com/tenant", "https://auth.example.com:8443", "http://127.0.0.1:8080",
		"http://127.0.0.2:8080", "http://[::1]:8080", "http://localhost:8080", "https://auth.example.com:443", "http://127.0.0.1:80",
		"https://auth.example.com:", "https://auth.example.com:08443", "https://auth.example.com:0", "https://auth.example.com:99999",
		"https://auth.example.com/a%2Fb", "https://auth.example.com/%61", "https://auth.example.com/a b", "https://auth.example.com/ä",
		"https://äuth.example.com", "https://[::ffff:127.0.0.1]", "http://[::ffff:127.0.0.1]:8080", "https://auth_x.example.com",
		"https://auth.example.com/a;b", "https://auth.example.com/a\\b", "https://auth.example.com/~a", "https://auth.example.com/a//b",
		"https://auth.example.com/./b", "https://auth.example.com/a/..", "https://[fe80::1%25eth0]:8443", "https://auth.example.com.",
	} {
		if mine, theirs := config.CheckIssuer(issuer), oauth2.CheckIssuer(issuer); mine == nil && theirs != nil {
			t.Errorf("config finds %s sound, the token endpoint says %v", issuer, theirs)
		} else if mine != nil && theirs == nil {
			t.Errorf("config refuses %s (%v), the token endpoint serves it", issuer, mine)
		}
	}
}
