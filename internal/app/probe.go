package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/authsvc/authsvc/internal/config"
)

// probeTimeout bounds one probe: the readiness of a server takes at most 2 s.
const probeTimeout = 3 * time.Second

// Probe asks the running server of a configuration how it is: nil if it is ready, or with live if it answers at all. It is for
// containers, in which there is no program to ask with but this one.
func Probe(ctx context.Context, cfg config.Config, live bool) error {
	_, port, err := net.SplitHostPort(cfg.Ops.Address)
	if err != nil || port == "0" {
		return fmt.Errorf("ops.address: %q names no port at which the server could be asked", cfg.Ops.Address)
	}
	path := "/readyz"
	if live {
		path = "/livez"
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+cfg.Ops.Address+path, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // which takes no proxy from the environment
	resp, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("no server answers at ops.address: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	var said struct {
		Failing []string `json:"failing"`
	}
	if json.NewDecoder(resp.Body).Decode(&said) == nil && len(said.Failing) > 0 {
		return errors.New("the server is not ready: " + strings.Join(said.Failing, ", "))
	}
	return fmt.Errorf("the server answers %s", resp.Status)
}
