package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/oauth2"
	"github.com/authsvc/authsvc/internal/service"
)

// callerLeft is what the access log shows of a caller who did not wait; it is the REST door's code for CANCELLED.
const callerLeft = 499

// maxBody limits the form, in bytes.
const maxBody = 64 << 10

// problem is an answer that is not a token.
type problem struct {
	code  int
	word  oauth2.ErrorCode
	text  string
	retry time.Duration
}

// issued is RFC 6749 §5.1.
type issued struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"`
	Scope       string `json:"scope,omitempty"`
}

func (d *Door) serveToken(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Access-Control-Allow-Origin", "*")
	if r.Method == http.MethodOptions {
		preflight(h, "POST, OPTIONS", "Authorization, Content-Type")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	req, bad := read(w, r)
	if bad == nil {
		req.Caller = d.caller(r)
		out, err := d.tokens.ClientCredentials(r.Context(), req)
		if err == nil {
			write(w, http.StatusOK, issued{AccessToken: out.AccessToken, TokenType: oauth2.TokenTypeBearer,
				ExpiresIn: int64(out.ExpiresIn / time.Second), Scope: out.Scope})
			return
		}
		bad = d.problemOf(r, req.Caller.RequestID, err)
	}
	refuse(w, *bad)
}

// read takes the request apart, in the order in which RFC 6749 gives the errors their meaning: the form of the request,
// then the grant, then the client.
func read(w http.ResponseWriter, r *http.Request) (service.ClientCredentialsRequest, *problem) {
	var req service.ClientCredentialsRequest
	form, bad := readForm(w, r)
	if bad != nil {
		return req, bad
	}
	switch form.Get("grant_type") {
	case "":
		return req, &problem{code: http.StatusBadRequest, word: oauth2.InvalidRequest, text: "grant_type is missing"}
	case oauth2.GrantClientCredentials:
	default:
		return req, &problem{code: http.StatusBadRequest, word: oauth2.UnsupportedGrantType, text: "the grant type is client_credentials"}
	}
	id, secret, bad := readClient(r, form)
	if bad != nil {
		return req, bad
	}
	resources := make([]string, 0, len(form["resource"]))
	for _, v := range form["resource"] {
		if v != "" {
			resources = append(resources, v)
		}
	}
	return service.ClientCredentialsRequest{ClientID: id, Secret: secret, Resources: resources, Scope: form.Get("scope")}, nil
}

func readForm(w http.ResponseWriter, r *http.Request) (url.Values, *problem) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", "POST, OPTIONS")
		return nil, &problem{code: http.StatusMethodNotAllowed, word: oauth2.InvalidRequest, text: "a token is asked for by POST"}
	}
	if r.URL.RawQuery != "" {
		return nil, &problem{code: http.StatusBadRequest, word: oauth2.InvalidRequest, text: "parameters belong in the body, never in the URI"}
	}
	if !isForm(r.Header) {
		return nil, &problem{code: http.StatusUnsupportedMediaType, word: oauth2.InvalidRequest,
			text: "the content type is application/x-www-form-urlencoded"}
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var over *http.MaxBytesError
	if errors.As(err, &over) {
		return nil, &problem{code: http.StatusRequestEntityTooLarge, word: oauth2.InvalidRequest, text: "the form is too large"}
	}
	if err != nil {
		return nil, &problem{code: http.StatusBadRequest, word: oauth2.InvalidRequest, text: "the body ended early"}
	}
	form, err := url.ParseQuery(string(data))
	if err != nil {
		return nil, &problem{code: http.StatusBadRequest, word: oauth2.InvalidRequest, text: "the form is malformed"}
	}
	for name, values := range form {
		if len(values) > 1 && name != "resource" {
			return nil, &problem{code: http.StatusBadRequest, word: oauth2.InvalidRequest, text: "a parameter is there twice"}
		}
	}
	return form, nil
}

// readClient finds the client's id and secret: HTTP Basic alone (RFC 6749 §2.3.1), and no second method beside it (§2.3).
func readClient(r *http.Request, form url.Values) (id, secret string, bad *problem) {
	inBody := form.Get("client_secret") != "" || form.Get("client_assertion") != "" || form.Get("client_assertion_type") != ""
	header := r.Header["Authorization"]
	switch {
	case len(header) > 1 || len(header) == 1 && inBody:
		return "", "", &problem{code: http.StatusBadRequest, word: oauth2.InvalidRequest, text: "a client authenticates in one way"}
	case len(header) == 0:
		return "", "", &problem{code: http.StatusUnauthorized, word: oauth2.InvalidClient, text: "the client authenticates by HTTP Basic"}
	}
	id, secret, err := oauth2.ParseBasic(header[0])
	if err != nil {
		return "", "", &problem{code: http.StatusUnauthorized, word: oauth2.InvalidClient, text: "the client authenticates by HTTP Basic"}
	}
	if named := form.Get("client_id"); named != "" && named != id {
		return "", "", &problem{code: http.StatusBadRequest, word: oauth2.InvalidRequest, text: "client_id is not the client that authenticates"}
	}
	return id, secret, nil
}

func isForm(h http.Header) bool {
	types := h["Content-Type"]
	if len(types) != 1 || len(h["Content-Encoding"]) > 0 {
		return false
	}
	name, params, err := mime.ParseMediaType(types[0])
	if err != nil || name != "application/x-www-form-urlencoded" {
		return false
	}
	for k, v := range params {
		if k != "charset" || !strings.EqualFold(v, "utf-8") {
			return false
		}
	}
	return true
}

// problemOf is this door's one switch over the kinds of faults. It logs once what the caller is not told; of one who went
// away there is nothing to say.
func (d *Door) problemOf(r *http.Request, requestID string, err error) *problem {
	f := fault.From(err)
	if errors.Is(err, context.Canceled) && errors.Is(r.Context().Err(), context.Canceled) {
		return &problem{code: callerLeft, word: oauth2.TemporarilyUnavailable, text: "the caller went away"} // nobody reads it
	}
	if f.Kind == fault.Internal && errors.Is(err, context.DeadlineExceeded) {
		f = fault.Wrap(err, fault.Unavailable, fault.StoreUnavailable, "there was not enough time to decide")
	}
	if f.Kind == fault.Internal || f.Kind == fault.Unavailable {
		d.log.LogAttrs(r.Context(), slog.LevelError, "request failed", slog.String("request_id", requestID), slog.Any("error", err))
	}
	p := &problem{code: http.StatusBadRequest, word: oauth2.InvalidRequest, text: f.Message, retry: f.RetryAfter}
	switch f.Kind {
	case fault.Invalid:
		switch f.Reason {
		case fault.InvalidTarget:
			p.word = oauth2.InvalidTarget
		case fault.InvalidScope:
			p.word = oauth2.InvalidScope
		}
	case fault.Unauthenticated:
		p.code, p.word = http.StatusUnauthorized, oauth2.InvalidClient
	case fault.Denied:
		p.word = oauth2.UnauthorizedClient
	case fault.NotFound, fault.Exists, fault.Conflict, fault.Precondition:
	case fault.Limited:
		p.code, p.word = http.StatusTooManyRequests, oauth2.TemporarilyUnavailable
	case fault.Unavailable:
		p.code, p.word, p.retry = http.StatusServiceUnavailable, oauth2.TemporarilyUnavailable, max(p.retry, time.Second)
	case fault.Internal:
		p.code, p.word, p.text = http.StatusInternalServerError, oauth2.ServerError, "internal error"
	}
	return p
}

func refuse(w http.ResponseWriter, p problem) {
	if p.code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="authsvc", charset="UTF-8"`)
	}
	if p.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(p.retry.Seconds()))))
	}
	write(w, p.code, oauth2.ErrorResponse{Error: p.word, Description: plain(p.text)})
}

// plain drops from s what error_description may not hold (RFC 6749 §5.2).
func plain(s string) string {
	return strings.Map(func(c rune) rune {
		if c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			return -1
		}
		return c
	}, s)
}

func write(w http.ResponseWriter, code int, v any) {
	data, err := json.Marshal(v)
	if err != nil { // plain strings and numbers always marshal
		code, data = http.StatusInternalServerError, []byte(`{"error":"server_error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(data) // a client that has gone away is not our error
}
