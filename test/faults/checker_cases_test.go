package faults

import (
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/guard"
)

// ms is a moment of a history that is made by hand.
func ms(at int64) int64 { return (1_000_000 + at) * int64(time.Millisecond) }

func refreshed(begin, end int64, gen, next uint32) event {
	return event{Op: opRefresh, Begin: ms(begin), End: ms(end), Via: balancer, Session: "s", Gen: gen, Next: next, Token: "t", Kid: "k", Out: outOK}
}

func refused(begin, end int64, reason string) event {
	return event{Op: opRefresh, Begin: ms(begin), End: ms(end), Via: balancer, Session: "s", Gen: 2, Out: outRefused, Reason: reason}
}

// called is a verdict by knowledge of a date.
func called(begin, known int64, reason string) event {
	e := event{Op: opCall, Begin: ms(begin), End: ms(begin + 1), Via: "service", Session: "s", Token: "t", Kid: "k", Least: ms(known), Most: ms(known), Exp: 1 << 40, Out: outOK}
	if e.Reason = reason; reason != "" {
		e.Out = outRefused
	}
	return e
}

func sensitively(e event) event { e.Sensitive = true; return e }

func introspected(begin int64, out outcome) event {
	return event{Op: opIntrospect, Begin: ms(begin), End: ms(begin + 1), Via: "replica 1", Session: "s", Token: "t", Kid: "k", Exp: 1 << 40, Out: out}
}

func revoked(begin, end int64, out outcome) event {
	return event{Op: opRevoke, Begin: ms(begin), End: ms(end), Via: balancer, Session: "s", Out: out}
}

func keyRevoked(kid string) event {
	return event{Op: opKeyRevoke, Begin: ms(0), End: ms(1), Kid: kid, Out: outOK}
}

func fault(begin, end int64) event {
	return event{Op: opFault, Begin: ms(begin), End: ms(end), Via: "fault"}
}

func still(begin, end int64) event { return event{Op: opStill, Begin: ms(begin), End: ms(end)} }

func away(begin, end int64) event {
	return event{Op: opRefresh, Begin: ms(begin), End: ms(end), Via: balancer, Session: "s", Gen: 2, Out: outAway, Last: true}
}

func expired(e event, sent int64) event { e.Exp, e.Sent = 1000, sent; return e }

// TestTheChecker: each promise is found broken where it is, and its twin is left alone.
func TestTheChecker(t *testing.T) {
	t.Parallel()
	share := event{Op: opShare, Begin: ms(0), Session: "s"}
	for name, c := range map[string]struct {
		rule string // "" where nothing is broken
		h    []event
	}{
		"two successors within the window":        {ruleGenerations, []event{refreshed(0, 5, 1, 2), refreshed(6000, 6005, 1, 3)}},
		"the twin: after it":                      {"", []event{refreshed(0, 5, 1, 2), refreshed(11000, 11005, 1, 3)}},
		"the twin: the same again":                {"", []event{refreshed(0, 5, 1, 2), refreshed(6, 9, 1, 2)}},
		"three successors within two windows":     {ruleGenerations, []event{refreshed(0, 5, 1, 2), refreshed(11000, 11005, 1, 3), refreshed(15000, 15005, 1, 4)}},
		"the twin: a window each":                 {"", []event{refreshed(0, 5, 1, 2), refreshed(11000, 11005, 1, 3), refreshed(22000, 22005, 1, 4)}},
		"one successor of two tokens":             {ruleGenerations, []event{refreshed(0, 5, 1, 3), refreshed(1, 9, 2, 3)}},
		"an old token redeemed after a newer one": {ruleGenerations, []event{refreshed(0, 5, 1, 2), refreshed(10, 15, 2, 3), refreshed(20, 25, 1, 2)}},
		"the twin: its answer came late":          {"", []event{refreshed(0, 25, 1, 2), refreshed(6, 15, 1, 2), refreshed(16, 20, 2, 3)}},
		"a refresh after the end was answered":    {ruleGenerations, []event{revoked(0, 5, outOK), refreshed(6, 9, 1, 2)}},
		"the twin: while it was answered":         {"", []event{revoked(0, 5, outOK), refreshed(4, 9, 1, 2)}},
		"a refresh after a theft was answered":    {ruleGenerations, []event{share, refused(0, 5, "REFRESH_REUSED"), refreshed(6, 9, 1, 2)}},

		"accepted by what has the revocation":         {rulePromise, []event{revoked(0, 5, outOK), called(10, 6, "")}},
		"the twin: by what has not":                   {"", []event{revoked(0, 5, outOK), called(10, 4, "")}},
		"the twin: nobody was told that it is over":   {"", []event{revoked(0, 5, outAway), called(10, 6, "")}},
		"sensitive, revoked longer ago than 2 s":      {rulePromise, []event{revoked(0, 5, outOK), sensitively(called(2100, 4, ""))}},
		"the twin: by a rule that may":                {"", []event{revoked(0, 5, outOK), called(2100, 4, "")}},
		"ordinary, revoked longer ago than 60 s":      {rulePromise, []event{revoked(0, 5, outOK), called(60_100, 4, "")}},
		"sensitive, by knowledge older than 2 s":      {rulePromise, []event{sensitively(called(3000, 900, ""))}},
		"the twin: of 2 s":                            {"", []event{sensitively(called(3000, 1100, ""))}},
		"a stolen session's token":                    {rulePromise, []event{share, refused(0, 5, "REFRESH_REUSED"), called(10, 6, "")}},
		"a token of a revoked key":                    {rulePromise, []event{keyRevoked("k"), called(10, 6, "")}},
		"the twin: of another key":                    {"", []event{keyRevoked("other"), called(10, 6, "")}},
		"introspected as active a second after":       {rulePromise, []event{revoked(0, 5, outOK), introspected(1100, outOK)}},
		"the twin: within the second":                 {"", []event{revoked(0, 5, outOK), introspected(900, outOK)}},
		"accepted after exp and skew":                 {rulePromise, []event{expired(called(0, 0, ""), 1_031_100)}},
		"the twin: within the skew":                   {"", []event{expired(called(0, 0, ""), 1_030_900)}},
		"an honest refresh refused":                   {ruleEnds, []event{refreshed(0, 5, 1, 2), refused(6, 9, "REFRESH_INVALID")}},
		"an honest refresh called theft":              {ruleEnds, []event{refreshed(0, 5, 1, 2), refused(6, 9, "REFRESH_REUSED")}},
		"the twin: two holders":                       {"", []event{share, refused(6, 9, "REFRESH_REUSED")}},
		"the twin: somebody ended it":                 {"", []event{revoked(0, 50, outAway), refused(6, 9, "REFRESH_INVALID")}},
		"somebody ended it later":                     {ruleEnds, []event{revoked(20, 50, outOK), refused(6, 9, "REFRESH_INVALID")}},
		"a live token refused as revoked":             {ruleEnds, []event{called(6, 5, guard.ReasonTokenRevoked)}},
		"the twin: a dead one":                        {"", []event{revoked(0, 5, outOK), called(6, 5, guard.ReasonTokenRevoked)}},
		"a live token introspected as inactive":       {ruleEnds, []event{introspected(5, outRefused)}},
		"the twin: an expired one":                    {"", []event{expired(introspected(5, outRefused), 1_001_000)}},
		"expired before its time":                     {ruleEnds, []event{expired(called(5, 5, guard.ReasonTokenExpired), 990_000)}},
		"the twin: called so after it":                {"", []event{expired(called(5, 5, guard.ReasonTokenExpired), 1_000_000)}},
		"a good token refused as invalid":             {ruleRotation, []event{called(5, 5, guard.ReasonTokenInvalid)}},
		"the twin: its key was revoked":               {"", []event{keyRevoked("k"), called(5, 5, guard.ReasonTokenInvalid)}},
		"a good token refused, another's key revoked": {ruleRotation, []event{keyRevoked("other"), called(5, 5, guard.ReasonTokenInvalid)}},
		"away though nothing happened":                {ruleBack, []event{away(0, 5)}},
		"away later than 5 s after a fault":           {ruleBack, []event{fault(0, 1000), away(6100, 6200)}},
		"the twin: within them":                       {"", []event{fault(0, 1000), away(5900, 6200)}},
		"the twin: the machine stood still":           {"", []event{still(6150, 9000), away(6100, 6200)}},
		"the machine stood still long before":         {ruleBack, []event{still(0, 1000), away(6100, 6200)}},
		"the twin: the next fault":                    {"", []event{fault(0, 1000), fault(6150, 9000), away(6100, 6200)}},
		"the twin: the client's retry was served":     {"", []event{{Op: opRefresh, Begin: ms(0), End: ms(5), Via: balancer, Out: outAway}}},
		"a wrong password signs in":                   {ruleSignIn, []event{{Op: opWrong, Out: outOK}}},
		"the twin: it does not":                       {"", []event{{Op: opWrong, Out: outRefused, Reason: "INVALID_CREDENTIALS"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := check(c.h)
			if c.rule == "" && len(got) != 0 {
				t.Errorf("nothing is broken, but it says %v", got)
			}
			if c.rule != "" && (len(got) == 0 || got[0].rule != c.rule) {
				t.Errorf("it says %v, and not that %s", got, c.rule)
			}
			for _, v := range got {
				if !strings.HasPrefix(v.String(), v.rule) {
					t.Errorf("it is told as %q", v)
				}
			}
		})
	}
}
