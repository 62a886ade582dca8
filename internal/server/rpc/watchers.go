package rpc

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"slices"
)

// bare is a standing without its entries, to be kept: entries that have expired are not to be held by it.
func (s standing) bare() *standing {
	s.view.Live = nil
	return &s
}

// naming knows the kids of one key set, so that it is read once for all who get it.
type naming struct {
	keySet []byte
	kids   []string
}

// of gives the kids of a JWK Set (RFC 7517 §5) in their order; none where it cannot be read.
func (n *naming) of(keySet []byte) []string {
	if bytes.Equal(n.keySet, keySet) {
		return n.kids
	}
	var set struct {
		Keys []struct {
			ID string `json:"kid"`
		} `json:"keys"`
	}
	*n = naming{keySet: keySet}
	if json.Unmarshal(keySet, &set) == nil {
		for _, k := range set.Keys {
			n.kids = append(n.kids, k.ID)
		}
	}
	return n.kids
}

// A page token is 8 bytes of a watcher's id, and 8 that tie them to this hub: watchers are counted anew by each, and a token of
// another would skip some without a word.
func (h *Hub) pageToken(id uint64) string {
	raw := binary.BigEndian.AppendUint64(nil, id)
	tie := sha256.Sum256(append(raw, h.born[:]...))
	return base64.RawURLEncoding.EncodeToString(append(raw, tie[:8]...))
}

// parsePage reads what pageToken wrote, and nothing else.
func (h *Hub) parsePage(token string) (id uint64, ok bool) {
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(raw) != 16 {
		return 0, false
	}
	id = binary.BigEndian.Uint64(raw)
	return id, h.pageToken(id) == token
}

// page gives the oldest n watchers that came after one of this id, and whether there are more.
func (h *Hub) page(after uint64, n int) (list []*watcher, more bool) {
	h.mu.Lock()
	for w := range h.watchers {
		if w.id > after {
			list = append(list, w)
		}
	}
	h.mu.Unlock()
	slices.SortFunc(list, func(a, b *watcher) int { return cmp.Compare(a.id, b.id) })
	if len(list) <= n {
		return list, false
	}
	return list[:n], true
}
