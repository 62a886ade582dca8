package proxy_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/internal/proxy"
)

func TestClient(t *testing.T) {
	t.Parallel()
	trusted := proxy.Trusted{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	tests := []struct {
		name, peer string
		forwarded  []string
		want       string
	}{
		{"R57 a peer that is not trusted speaks for itself alone", "192.0.2.7", []string{"198.51.100.1"}, "192.0.2.7"},
		{"R57 the right-most untrusted hop", "10.0.0.1", []string{"203.0.113.9, 198.51.100.1, 10.0.0.2"}, "198.51.100.1"},
		{"R57 the same over several values", "10.0.0.1", []string{"203.0.113.9", "198.51.100.1", "10.0.0.2"}, "198.51.100.1"},
		{"R57 lists in several values", "10.0.0.1", []string{"203.0.113.9", "198.51.100.1, 10.0.0.3", "10.0.0.2,10.0.0.4"}, "198.51.100.1"},
		{"IPv6", "fd00::1", []string{"2001:db8::1"}, "2001:db8::1"},
		{"IPv6 through proxies of both kinds", "fd00::1", []string{"2001:db8::1, 10.0.0.2, fd00::2"}, "2001:db8::1"},
		{"IPv4 mapped into IPv6", "10.0.0.1", []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		{"a proxy mapped into IPv6 is a proxy", "10.0.0.1", []string{"198.51.100.1, ::ffff:10.0.0.2"}, "198.51.100.1"},
		{"no value", "10.0.0.1", nil, "10.0.0.1"},
		{"an empty value says nothing", "10.0.0.1", []string{"198.51.100.1", ""}, "198.51.100.1"},
		{"nothing but proxies", "10.0.0.1", []string{"10.9.9.9"}, "10.0.0.1"},
		{"L11 a hop that is not an address", "10.0.0.1", []string{"a"}, "10.0.0.1"},
		{"L11 not an address on the right", "10.0.0.1", []string{"198.51.100.1, a"}, "10.0.0.1"},
		{"L11 not an address in a value on the right", "10.0.0.1", []string{"198.51.100.1", "a"}, "10.0.0.1"},
		{"L11 an empty hop", "10.0.0.1", []string{"198.51.100.1,"}, "10.0.0.1"},
		{"L11 an empty hop on the left", "10.0.0.1", []string{",198.51.100.1"}, "10.0.0.1"},
		{"L11 an address with a zone", "10.0.0.1", []string{"fe80::1%eth0"}, "10.0.0.1"},
		{"L11 an address with a port", "10.0.0.1", []string{"198.51.100.1:4711"}, "10.0.0.1"},
		{"L11 an address in brackets", "10.0.0.1", []string{"[2001:db8::1]"}, "10.0.0.1"},
		{"L11 an address with leading zeros", "10.0.0.1", []string{"198.051.100.001"}, "10.0.0.1"},
		{"L11 no address at all: 0.0.0.0", "10.0.0.1", []string{"0.0.0.0"}, "10.0.0.1"},
		{"L11 bytes that are not text", "10.0.0.1", []string{"\xff\x00"}, "10.0.0.1"},
		{"L11 not an address left of the client is not looked at", "10.0.0.1", []string{"a, 198.51.100.1"}, "198.51.100.1"},
		{"a thousand proxies", "10.0.0.1", []string{"198.51.100.1" + strings.Repeat(",10.0.0.2", 1000)}, "198.51.100.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			peer := netip.MustParseAddr(tt.peer)
			if got := trusted.Client(peer, tt.forwarded); got != netip.MustParseAddr(tt.want) {
				t.Errorf("the client is %s, want %s", got, tt.want)
			}
			if got := proxy.Trusted(nil).Client(peer, tt.forwarded); got != peer {
				t.Errorf("L11 where nobody is trusted the client is %s", got)
			}
		})
	}
	if got := trusted.Client(netip.Addr{}, []string{"198.51.100.1"}); got.IsValid() {
		t.Errorf("of a peer that nobody knows the client is %s", got)
	}
}
