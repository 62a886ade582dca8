// Package proxy owns the trusted-proxy rule: whose word is believed for the address that a request came from. Every door asks
// it, so that a throttle or a session's address cannot be fooled at one of them.
package proxy

import (
	"net/netip"
	"strings"
)

// Trusted are the networks of the proxies whose X-Forwarded-For is believed; none trusts nobody.
type Trusted []netip.Prefix

// Contains reports whether addr, unmapped and without a zone, is a trusted proxy.
func (t Trusted) Contains(addr netip.Addr) bool {
	for _, p := range t {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// Client gives the address of whoever sent a request that came from peer, with the values of its X-Forwarded-For in their
// order, each a list with commas. It walks them from the right end, where the nearest proxy wrote, to the first address that
// is not a trusted proxy. Where the peer is not trusted itself, something on the way cannot be read, or the chain is nothing
// but proxies, it is the peer: a bad value must never open a fresh bucket of a rate limit.
func (t Trusted) Client(peer netip.Addr, forwarded []string) netip.Addr {
	if !t.Contains(peer) {
		return peer
	}
	for i := len(forwarded) - 1; i >= 0; i-- {
		rest := forwarded[i]
		for rest != "" {
			hop := rest
			if comma := strings.LastIndexByte(rest, ','); comma >= 0 {
				hop, rest = rest[comma+1:], rest[:comma]
				if rest == "" {
					return peer
				}
			} else {
				rest = ""
			}
			addr, err := netip.ParseAddr(strings.TrimSpace(hop))
			if err != nil || addr.Zone() != "" || addr.IsUnspecified() {
				return peer
			}
			if addr = addr.Unmap(); !t.Contains(addr) {
				return addr
			}
		}
	}
	return peer
}
