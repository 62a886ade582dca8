package verify

import "unsafe"

// Segments exposes the first step of reading a token: the decoded header, payload and signature.
func Segments(token string) (header, payload string, signature []byte, err error) {
	p, err := split(token)
	return p.header, p.payload, p.signature, err
}

// ReadHeader exposes the second step.
func ReadHeader(header string, foreign bool) (kid string, err error) {
	return readHeader(header, foreign)
}

// SignatureGood exposes the third: whether a token's last segment is the key's signature over the first two, whatever they hold.
func SignatureGood(token string, key *Key) (bool, error) {
	p, err := split(token)
	if err != nil {
		return false, err
	}
	s, err := newSignature()
	return err == nil && s.good(p.signed, p.signature, key), err
}

// ReadClaims exposes the step after the signature.
func ReadClaims(payload string, foreign bool) (*Claims, error) {
	t := &verified{}
	err := readClaims(t, payload, foreign)
	return &t.claims, err
}

// Cached says whether the cache holds the token.
func (v *Verifier) Cached(token string) bool { return v.cache.get(v.cache.hash(token), token) != nil }

// CacheUse says how many bytes and tokens the cache counts, and its bound.
func (v *Verifier) CacheUse() (bytes, tokens, limit int) {
	v.cache.mu.Lock()
	defer v.cache.mu.Unlock()
	for i := range v.cache.places {
		if v.cache.places[i].at.Load() != nil {
			tokens++
		}
	}
	return v.cache.bytes, tokens, v.cache.limit
}

// Bytes is the memory of the list's tables.
func (l *List) Bytes() int {
	bytes := int(unsafe.Sizeof(*l))
	for i := range l.tables {
		if t := l.tables[i].Load(); t != nil {
			bytes += int(unsafe.Sizeof(*t)) + cap(t.places)*int(unsafe.Sizeof(place{})) + 8*cap(t.tags)
		}
	}
	return bytes
}
