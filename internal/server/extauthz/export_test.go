package extauthz

// ReadQuestion gives what counts of a CheckRequest: its authorizations, and its context extensions as name and value in turn.
func ReadQuestion(data []byte) (authorization, extensions []string, err error) {
	var q question
	err = q.UnmarshalBinary(data)
	for _, p := range q.extensions {
		extensions = append(extensions, p.name, p.value)
	}
	return q.authorization, extensions, err
}
