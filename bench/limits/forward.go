package main

import "net/http"

// forward is a bare net/http handler that answers with the headers that it is given at its start, by name and value, and no body.
func forward(args []string) error {
	l, err := listen()
	if err != nil {
		return err
	}
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(args); i += 2 {
			w.Header().Set(args[i], args[i+1])
		}
		w.WriteHeader(http.StatusOK)
	}))
}
