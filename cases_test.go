package authsvc_test

// A securityCase is one kind of bad input, or one demand, that tests must show to be met.
type securityCase struct {
	id   string // R: a demand; J: tokens; F: refresh; L: sign-in; G: the doors; D: stores and faults; A: the surface; P: revocation and its feed
	what string // what comes in, and what must come of it
	twin string // the same with the fault taken out, which must be accepted
}

// securityCases are those that the service must meet today.
func securityCases() []securityCase {
	return []securityCase{
		{"R07", "The token endpoint takes a POSTed form only; a repeated parameter or two ways of client authentication are invalid_request; nothing is cached.", "Each parameter once, one authentication."},
		{"R08", "A bearer token counts in the header only, never in the query; none is 401, a bad one 401, a missing scope 403.", "The same token in the header."},
		{"R09", "Revoking an unknown token is 200; another client's token stays; a refresh token takes its session along; a store that fails is 503, never 200.", "Revoking one's own token."},
		{"R10", "Introspection asks who calls and whether the token is for them; inactive is exactly {\"active\": false}.", "A client of the token's audience."},
		{"R11", "The metadata's issuer is the configured one, never the Host header's, and equals iss byte for byte.", "The configured Host."},
		{"R27", "An access token has exactly the claims of RFC 9068, lives at most 15 minutes and holds no personal data.", "A token of 5 minutes."},
		{"R28", "The key fixes alg; typ, iss and aud are exact; exp and iat are required; the skew is at most 60 s.", "A token that meets all of them."},
		{"R29", "Compact form only, at most 8 KiB before decoding; JWE, JSON form, zip, b64 and any crit are refused.", "The plain compact token."},
		{"R30", "One algorithm and use per key, e = 65537, kid is the RFC 7638 thumbprint, private keys are sealed with their kid, and the key set shows no private part.", "A key as it was sealed."},
		{"R31", "A key is published before it signs longer than a cache lives, and kept after it longer than a token lives.", "A token signed the moment the key became active."},
		{"R32", "A verifier serves nothing before it has keys; an unknown kid fetches at most once per 30 s; removed keys go; a failed fetch keeps the last good set.", "A known kid."},
		{"R36", "A session has a random id of 128 bits or more, its secret is stored hashed, and each sign-in makes a new one.", "The session just made."},
		{"R43", "Logout, disabling, deleting and a new password end sessions; people can list and end their own.", "The session that stays."},
		{"R45", "Argon2id of at least 19 MiB and 2 passes, its parameters in the hash and capped when read back, rehashed at sign-in when they grow.", "A hash of today's parameters."},
		{"R46", "A password is 15 to 256 code points and at most 1 KiB, checked before hashing; nothing is asked of its make-up.", "64 code points of anything."},
		{"R47", "The whole password counts, normalised once (RFC 8265 OpaqueString).", "The same password, typed on another keyboard."},
		{"R48", "A new password that is on the list of common ones, or is made of the username, is refused.", "A password that is neither."},
		{"R49", "Unknown, disabled and wrong get the same code, body, headers and work.", "The right password."},
		{"R50", "Failures are counted by account and by network, and slow down further tries; nobody is locked out.", "The right password once the wait is over."},
		{"R54", "Every way in asks one question whether the account may act.", "An active account."},
		{"R55", "No default accounts; service secrets are random, shown once and stored hashed.", "The secret as it was shown."},
		{"R56", "Who may call is a table from the descriptors, by exact method, with refusal for what is not in it.", "A method that is."},
		{"R57", "The client's address comes from trusted hops alone; a bad value falls back to the peer's.", "A trusted proxy's header."},
		{"R58", "Bodies, messages, header lists, streams and times are limited.", "A request at the limit."},
		{"R59", "Errors have a stable code and the request's id, and no SQL, host, stack or token; a panic ends its call only.", "The call after the panic."},
		{"R60", "What may happen once is one atomic statement.", "The first of the callers."},
		{"R61", "A dependency that fails never means yes.", "The same call once it is back."},
		{"R62", "Security events leave a record of who, what, when, from where and how it went, in the same transaction.", "The record of a success."},
		{"R63", "No password, token or secret in logs, traces, metrics, panics or records.", "The id that stands for it."},

		{"J01", "alg none in any spelling, or an empty signature: refused.", "RS256, signed."},
		{"J02", "HS256 keyed with the RSA public key: refused.", "RS256 by that key."},
		{"J03", "The right key with RS384, PS256 or RS512: refused.", "The right key with RS256."},
		{"J04", "A kid that is a path, SQL, NUL, long, a number, missing or empty: refused, and looked up in a map only.", "A known kid."},
		{"J05", "jku or x5u: refused without a connection.", "A header of alg, typ and kid."},
		{"J07", "Any crit: refused.", "No crit."},
		{"J08", "b64 false: refused.", "No b64."},
		{"J09", "A name twice in the header or the claims: refused.", "Each name once."},
		{"J12", "The same token in another spelling (trailing bits, padding, line breaks, spaces): refused.", "Its canonical spelling."},
		{"J14", "A token of 64 KiB to 10 MB: refused at 8 KiB, before decoding.", "A token just within 8 KiB."},
		{"J15", "A JWS in JSON, with no protected header or with two signatures: refused.", "The compact form."},
		{"J16", "A JWE: refused unopened.", "A JWS."},
		{"J17", "exp missing or null: refused.", "exp a number ahead."},
		{"J19", "iat or nbf ahead, or a lifetime beyond the most: refused.", "Times within the skew."},
		{"J20", "aud empty, of another type, absent, in another case or with a slash: refused.", "A list that has us."},
		{"J21", "iss with a slash, another scheme, case or letter: refused.", "iss byte for byte."},
		{"J22", "Another kind of token, or typ absent or JWT: refused.", "at+jwt."},
		{"J24", "A signature with flipped bits, cut, too long or badly padded: refused.", "The valid vector of the group."},
		{"J25", "A key set with weak, huge, private, duplicate or foreign keys: those are dropped, the others serve.", "The good key of the same set."},
		{"J26", "Random kids at any rate: one fetch per 30 s, bounded memory.", "A good token meanwhile."},
		{"J27", "A key set that fails, hangs, is huge, is HTML or redirects inwards: the last good one stays.", "A good token meanwhile."},
		{"J28", "A key withdrawn: its tokens fail within one refresh.", "A token of the key that stays."},
		{"J29", "A cached verdict for another audience, or after a revocation: asked anew.", "The same token again."},
		{"J30", "Work shared under less than the whole credential: never.", "Two calls with the whole same one."},

		{"F01", "The last redeemed token again within the window: the same successor, one rotation.", "The newest token."},
		{"F02", "The same later, its successor never redeemed: a fresh successor, up to a cap.", "The newest token."},
		{"F03", "The dead successor after that: theft, the session ends.", "The living successor."},
		{"F04", "A token older than the last redeemed: theft, the session ends.", "The last redeemed, in the window."},
		{"F05", "A hundred callers with one token: one rotation, the same refresh token for all, nobody signed out.", "One caller."},
		{"F07", "A replay after every process has restarted: found all the same.", "The newest token after a restart."},
		{"F08", "Refresh racing Revoke: once Revoke has answered nothing refreshes, and what was minted is covered.", "Refresh before Revoke."},
		{"F10", "Theft is answered by an error, and yet the end of the session is committed.", "The session before the theft."},
		{"F12", "Account disabled or deleted: the next refresh is refused.", "An active account."},
		{"F13", "A wider scope than granted: refused; a narrower one leaves the grant whole.", "The granted scope."},
		{"F14", "Idle and absolute ends at one second before, at, and after; refreshing never moves the absolute one.", "One second before."},
		{"F16", "A refresh token in a query or by GET: 405, and not in the log.", "POST with a body."},
		{"F17", "The connection cut after the commit: the retry works, nobody is signed out.", "The answer that arrived."},
		{"F18", "The database lost writes: honest holders of newer tokens go on, with an alert.", "The newest token."},

		{"L01", "Unknown, wrong and disabled: the same bytes and the same work.", "The right password."},
		{"L02", "The same with a full hashing queue.", "An empty queue."},
		{"L03", "A password of 1 MB or 257 code points: refused before hashing.", "64 code points."},
		{"L05", "Composed and decomposed forms of one password open the same account; full-width ones do not.", "The form it was set in."},
		{"L11", "X-Forwarded-For forged or unreadable: no fresh counter.", "A trusted proxy's header."},
		{"L13", "Ten times as many sign-ins as can be hashed: shed at once with a time to retry.", "A sign-in within capacity."},
		{"L14", "A client gone during hashing: its slot is held until the hash ends, and nothing leaks.", "A client that waits."},

		{"G01", "A second authorization smuggled as metadata: dropped; two values: refused.", "One authorization."},
		{"G02", "Forwarding headers smuggled as metadata: dropped.", "The address of the connection."},
		{"G03", "Internal keys as metadata: an allow-list lets none through.", "A listed header."},
		{"G05", "A client's timeout of 1 ns, huge or malformed: clamped; it stops no revocation.", "A timeout of a second."},
		{"G06", "X-HTTP-Method-Override: ignored.", "The method itself."},
		{"G07", "JSON under another content type or none: 415.", "application/json."},
		{"G10", "A path without a slash, with two, escaped or in another case: no handler.", "The exact path."},
		{"G11", "Floods of resets, continuations, pings and settings: closed, memory flat.", "An ordinary connection."},
		{"G13", "Two lengths, h2c upgrades, a hanging preface, a compressed bomb: refused or closed.", "One length."},
		{"G14", "Reflection, profiles and metrics on a public port: absent; skips are by exact name.", "Metrics on the operators' port."},
		{"G15", "A million method names or user agents: metrics stay bounded.", "A known method."},
		{"G16", "A store's error, a panic, bad UTF-8: a clean code without internals.", "A call that succeeds."},
		{"G17", "A stream without its interceptor: impossible.", "A stream with it."},
		{"G18", "Origin null, look-alikes and suffixes: no CORS.", "The exact origin."},

		{"D09", "The database is busy: retried with jitter and a bound, never a sign-out.", "A free database."},
		{"D10", "The pool is used up: a deadline, not ready, alive.", "A free connection."},
		{"D11", "The disk is full: what writes fails, what verifies serves, and it recovers by itself.", "A disk with room."},
		{"D12", "kill -9 at any point: the database is whole and every acknowledged revocation is in force.", "A stop by signal."},
		{"D17", "A release before after one behind: nobody is signed out.", "One release throughout."},
		{"D18", "The sealing key missing or wrong, a key row changed or swapped: no start, and never new keys silently.", "The right key and untouched rows."},
		{"D20", "SQL in every field, NUL: parameters, or a field refused.", "The same text as an ordinary name."},
		{"D21", "Fifty creations of one username at once: one account.", "One creation."},
		{"D22", "A stop in mid-call: drained, nothing half-done.", "The call before the stop."},

		{"A07", "Canary secrets through every call, error and log: none comes out.", "The call itself works."},
		{"P01", "A revocation: every verifier that watches refuses the token within a second.", "A token that is not revoked."},
		{"P02", "A verifier that was cut off: fresh, stale and expired answers by the age of what it knows, and what it lacks once it is back.", "A verifier that was not."},
		{"P04", "Revocations that many commit at once, a later one before an earlier: none is skipped.", "One after the other."},
		{"P08", "A verifier's clock set back, a cursor of another history of the log or ahead of it: what has expired or is revoked stays refused, and nothing that is held is taken away.", "A clock that goes on, and a cursor of this log."},
		{"P11", "Introspection by a client that the token is not for: inactive; by nobody: 401.", "By a client of the token's audience."},
		{"P12", "A stream whose token is revoked or expires: it ends within a second.", "A stream whose token is good."},
	}
}

// notYetTested are the cases that no test names. Whoever tests one takes it off; the list may only shrink.
func notYetTested() []string {
	return nil
}
