package app

import "net/http"

// Meter is what counts events, for tests of what an operator sees.
type Meter = metrics

// NewMeter makes one, with the handler that shows it.
func NewMeter() (*Meter, http.Handler, error) {
	m, err := newMetrics()
	if err != nil {
		return nil, nil, err
	}
	return m, m.handler, nil
}
