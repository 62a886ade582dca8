package password

// Hold takes a slot, as a hash under way does, until the given function is called.
func Hold(h *Hasher) (release func()) {
	h.tickets <- struct{}{}
	h.slots <- struct{}{}
	return func() { <-h.slots; <-h.tickets }
}

// ListText is the bundled list.
func ListText() string { return list }
