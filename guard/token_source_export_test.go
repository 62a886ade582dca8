package guard

import (
	"net/http"
	"time"
)

// AskBy puts the test's connection in the place of the network's.
func (s *TokenSource) AskBy(t http.RoundTripper) { s.transport = t }

// CountBy puts the test's clocks in the place of the machine's.
func (s *TokenSource) CountBy(read func() (mono time.Duration, wall int64), boot func() time.Duration) {
	s.clock = newClock(read, boot)
}

// Times are those of the token that is held, counted from when it was asked for.
func (s *TokenSource) Times() (early, until time.Duration) {
	h := s.held.Load()
	return h.early - h.sent, h.until - h.sent
}

// ReadAnswer is how an answer is read.
func ReadAnswer(refresh bool, code int, header http.Header, body []byte) (access, next string, life time.Duration, err error) {
	got, err := readAnswer(refresh, code, header, body)
	if err != nil {
		return "", "", 0, err
	}
	return got.access, got.refresh, got.life, nil
}
