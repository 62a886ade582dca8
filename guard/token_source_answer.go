package guard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	answerLimit      = 64 << 10 // bytes of an answer's body
	tokenLimit       = 8 << 10  // bytes of a token
	wordLimit        = 64       // bytes of a reason
	secretLeast      = 8        // bytes; what is shorter would be found in any text, and is no secret
	reasonSuperseded = "REFRESH_SUPERSEDED"
	jsonType         = "application/json"
	errorInfoType    = "type.googleapis.com/google.rpc.ErrorInfo"
)

// tokenFault is why there is no token.
type tokenFault struct {
	refused bool          // the server has decided; otherwise it could not be asked, or did not answer as it should
	reason  string        // the server's word, if it gave one
	retry   time.Duration // what the server asks us to wait; 0: nothing
	cause   error         // where it is not refused
}

func (f *tokenFault) Error() string {
	if !f.refused {
		return "guard: no access token at the moment: " + f.cause.Error()
	}
	if f.reason == "" {
		return ErrTokenRefused.Error()
	}
	return ErrTokenRefused.Error() + ": " + f.reason
}

func (f *tokenFault) Is(target error) bool { return f.refused && target == ErrTokenRefused }

func (f *tokenFault) Unwrap() error { return f.cause }

// final says whether the refresh token is refused for what it is: not the client, whose secret may be mended.
func (f *tokenFault) final() bool {
	return f.refused && strings.HasPrefix(f.reason, refreshPrefix)
}

func unavailable(cause error) error { return &tokenFault{cause: cause} }

// question is a request for a token.
type question struct {
	path, contentType string
	body              []byte
	presented         string // the refresh token that is in it, or empty
}

// answer is a token as it came.
type answer struct {
	access, refresh string
	life            time.Duration
	sent            time.Duration // when it was asked for, by the source's clock
}

// held dates a token. Its life is counted from when it was asked for, so that it never seems to live longer than it does.
func (a *answer) held() *heldToken {
	return &heldToken{
		value: a.access, sent: a.sent,
		early: a.sent + a.life*3/5 + rand.N(a.life/5),
		until: a.sent + a.life - min(usableLeft, a.life/10),
	}
}

func (s *TokenSource) credentialsRequest() question {
	form := url.Values{"grant_type": {"client_credentials"}}
	if len(s.o.Resources) > 0 {
		form["resource"] = s.o.Resources
	}
	if s.o.Scope != "" {
		form.Set("scope", s.o.Scope)
	}
	return question{path: "/oauth2/token", contentType: "application/x-www-form-urlencoded", body: []byte(form.Encode())}
}

func (s *TokenSource) refreshRequest(token string) question {
	members := map[string]string{"refresh_token": token, "client_id": s.o.ClientID}
	if s.o.Scope != "" {
		members["scope"] = s.o.Scope
	}
	body, err := json.Marshal(members)
	if err != nil { // strings always marshal
		body = nil
	}
	return question{path: "/v1/auth/refresh", contentType: jsonType, body: body, presented: token}
}

// exchange asks the server once. It follows no redirect, for a transport does not. Its errors are tokenFaults, and hold nothing of
// what was sent, whatever the other end puts into its answer.
func (s *TokenSource) exchange(ctx context.Context, q question) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, requestLimit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+q.path, bytes.NewReader(q.body))
	if err != nil {
		return nil, unavailable(errors.New("the request cannot be made"))
	}
	request.Header.Set("Content-Type", q.contentType)
	request.Header.Set("Accept", jsonType)
	request.Header.Set("User-Agent", "authsvc-guard")
	if _, authorization := s.secret(); authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	sent := s.clock.passed()
	response, err := s.transport.RoundTrip(request)
	if err != nil {
		return nil, s.unreachable(ctx, q, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, answerLimit+1))
	if err != nil {
		return nil, s.unreachable(ctx, q, err)
	}
	if len(body) > answerLimit {
		return nil, unavailable(errors.New("the answer is over 64 KiB"))
	}
	s.clock.measure()
	if s.clock.passed()-sent > storableFor {
		return nil, unavailable(errors.New("the answer came too late"))
	}
	got, err := readAnswer(q.presented != "", response.StatusCode, response.Header, body)
	var f *tokenFault
	if errors.As(err, &f) && s.quotes(q, f.reason) {
		return nil, unavailable(errors.New("the answer is malformed"))
	}
	if err != nil {
		return nil, err
	}
	got.sent = sent
	return got, nil
}

// unreachable is a failure of the connection. That of a deadline is ours, and must not look like a caller's.
func (s *TokenSource) unreachable(ctx context.Context, q question, err error) error {
	if ctx.Err() != nil {
		return unavailable(errSlowRenewal)
	}
	unfit := func(c rune) bool { return !unicode.IsPrint(c) } // a certificate's names may begin a new line of a log
	if text := err.Error(); len(text) > 1024 || s.quotes(q, text) || strings.ContainsFunc(text, unfit) {
		return unavailable(errors.New("the connection failed, in words that are not to be repeated"))
	}
	return unavailable(err)
}

// quotes says whether a text holds something that nobody may see: a server can send back what it was sent.
func (s *TokenSource) quotes(q question, text string) bool {
	plain, authorization := s.secret()
	for _, secret := range []string{plain, url.QueryEscape(plain), strings.TrimPrefix(authorization, "Basic "), q.presented} {
		if len(secret) >= secretLeast && strings.Contains(text, secret) {
			return true
		}
	}
	return false
}

// readAnswer reads what came for a refresh token or for the client's credentials. All its errors are tokenFaults; in their texts
// only a reason is the server's.
func readAnswer(refresh bool, code int, header http.Header, body []byte) (*answer, error) {
	if code == http.StatusOK {
		got, ok := readToken(refresh, body)
		if !ok {
			return nil, unavailable(errors.New("the answer is malformed"))
		}
		return got, nil
	}
	reason := oauthError(body)
	if refresh {
		reason = statusReason(body)
	}
	f := &tokenFault{reason: reason, retry: retryAfter(header.Get("Retry-After"))}
	switch reason {
	case "", "temporarily_unavailable", "server_error", reasonSuperseded:
	default: // 403 and the like without a word of ours are some proxy's
		f.refused = code == http.StatusBadRequest || code == http.StatusUnauthorized || code == http.StatusForbidden
	}
	if !f.refused {
		f.cause = errors.New(strings.TrimSpace(fmt.Sprintf("status %d %s", code, reason)))
	}
	return nil, f
}

// readToken reads RFC 6749 §5.1, and of a refresh token's answer the next one.
func readToken(refresh bool, body []byte) (*answer, bool) {
	all, ok := members(body)
	if !ok {
		return nil, false
	}
	var got answer
	var kind string
	var seconds int64
	for name, into := range map[string]any{"access_token": &got.access, "token_type": &kind, "expires_in": &seconds} {
		if json.Unmarshal(all[name], into) != nil { // an absent one too
			return nil, false
		}
	}
	if refresh && (json.Unmarshal(all["refresh_token"], &got.refresh) != nil || !bearer(got.refresh)) {
		return nil, false
	}
	got.life = time.Duration(min(seconds, int64(longestLife/time.Second))) * time.Second
	return &got, bearer(got.access) && strings.EqualFold(kind, "Bearer") && seconds > 0
}

// members takes an object apart: one, whose names are all different, and nothing behind it.
func members(body []byte) (map[string]json.RawMessage, bool) {
	if !utf8.Valid(body) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, false
	}
	all := map[string]json.RawMessage{}
	for d.More() {
		name, err := d.Token()
		key, isName := name.(string)
		var value json.RawMessage
		if _, twice := all[key]; err != nil || !isName || twice || d.Decode(&value) != nil {
			return nil, false
		}
		all[key] = value
	}
	if _, err := d.Token(); err != nil { // the bracket
		return nil, false
	}
	_, err := d.Token()
	return all, errors.Is(err, io.EOF)
}

// bearer says whether s is what may stand behind "Bearer " (RFC 6750 §2.1).
func bearer(s string) bool {
	bare := strings.TrimRight(s, "=")
	return bare != "" && len(s) <= tokenLimit && only(bare, "-._~+/")
}

// only says whether s has nothing but letters, digits and those others.
func only(s, others string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return true
}

// word gives s if it can be a reason.
func word(s string) string {
	if len(s) > wordLimit || !only(s, "_") {
		return ""
	}
	return s
}

// oauthError is the error of RFC 6749 §5.2.
func oauthError(body []byte) string {
	var e struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &e) != nil {
		return ""
	}
	return word(e.Error)
}

// statusReason is the reason in a google.rpc.Status.
func statusReason(body []byte) string {
	var st struct {
		Details []struct {
			Type   string `json:"@type"`
			Reason string `json:"reason"`
			Domain string `json:"domain"`
		} `json:"details"`
	}
	if json.Unmarshal(body, &st) != nil {
		return ""
	}
	for _, d := range st.Details {
		if d.Type == errorInfoType && d.Domain == Domain {
			return word(d.Reason)
		}
	}
	return ""
}

// retryAfter reads the field of that name (RFC 9110 §10.2.3), seconds or a date, up to longestPause.
func retryAfter(value string) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(seconds, uint64(longestPause/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(0, time.Until(at)), longestPause)
	}
	return 0
}
