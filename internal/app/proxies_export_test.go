package app

// Proxied counts an answer to a reverse proxy.
func Proxied(m *Meter, outcome string) { m.proxied(outcome) }
