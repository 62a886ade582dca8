package password

import "fmt"

// DummyCost is what the hash for an unknown name costs, as the beginning of its PHC string would say it.
func DummyCost(h *Hasher) string {
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,", h.dummy.params.MemoryKiB, h.dummy.params.Time)
}

// Hold takes a slot, as a hash under way does, until the given function is called.
func Hold(h *Hasher) (release func()) {
	h.tickets <- struct{}{}
	h.slots <- struct{}{}
	return func() { <-h.slots; <-h.tickets }
}

// ListText is the bundled list.
func ListText() string { return list }
