package main

import (
	"encoding/json"
	"net/http"
)

// introspection is the answer of an introspection as encoding/json writes it.
type introspection struct {
	Active    bool     `json:"active"`
	Scope     string   `json:"scope,omitempty"`
	ClientID  string   `json:"client_id,omitempty"`
	TokenType string   `json:"token_type,omitempty"`
	Exp       string   `json:"exp,omitempty"`
	Iat       string   `json:"iat,omitempty"`
	Nbf       string   `json:"nbf,omitempty"`
	AuthTime  string   `json:"auth_time,omitempty"`
	Sub       string   `json:"sub,omitempty"`
	Aud       []string `json:"aud,omitempty"`
	Iss       string   `json:"iss,omitempty"`
	JTI       string   `json:"jti,omitempty"`
	SID       string   `json:"sid,omitempty"`
	AMR       []string `json:"amr,omitempty"`
}

// jsonEcho is a bare net/http handler that reads a JSON request and writes a JSON answer: the one given at its start.
func jsonEcho(args []string) error {
	var out introspection
	if err := json.Unmarshal([]byte(args[0]), &out); err != nil {
		return err
	}
	l, err := listen()
	if err != nil {
		return err
	}
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Token string `json:"token"`
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Token == "" {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // the client sees it
	}))
}
