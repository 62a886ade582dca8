package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// loopback is any free port of this machine.
const loopback = "127.0.0.1:0"

// demo is what `authsvc serve -dev` writes into dev.json.
type demo struct {
	HTTP                string `json:"http"`
	GRPC                string `json:"grpc"`
	Issuer              string `json:"issuer"`
	Username            string `json:"username"`
	Password            string `json:"password"`
	PublicClientID      string `json:"public_client_id"`
	ServiceClientID     string `json:"service_client_id"`
	ServiceClientSecret string `json:"service_client_secret"`
	Audience            string `json:"audience"`
}

func readDemo(home string) (d demo, err error) {
	text, err := os.ReadFile(filepath.Join(home, "dev.json")) //nolint:gosec // the folder is our own
	if err != nil {
		return d, err
	}
	return d, json.Unmarshal(text, &d)
}

// build builds authsvc from the clone that this example is part of.
func build(ctx context.Context, to string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", to, "github.com/authsvc/authsvc/cmd/authsvc") //nolint:gosec // a folder of our own
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// processes are those that were started, in their order.
type processes []*exec.Cmd

// start starts a program and waits for the first line that it prints: then it serves.
func (p *processes) start(name string, args ...string) (first string, err error) {
	cmd := exec.Command(name, args...) //nolint:gosec // what this example consists of
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for this process, which then stops the others in order
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	*p = append(*p, cmd)
	lines := bufio.NewReader(out)
	if first, err = lines.ReadString('\n'); err != nil {
		return "", fmt.Errorf("%s did not start: %w", filepath.Base(name), err)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }() // it ends with the process
	return first[:len(first)-1], nil
}

// stop stops them, the last first.
func (p *processes) stop() error {
	var errs []error
	for i := len(*p) - 1; i >= 0; i-- {
		cmd := (*p)[i]
		if err := cmd.Process.Signal(os.Interrupt); err == nil {
			if err := cmd.Wait(); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err))
			}
		}
	}
	return errors.Join(errs...)
}
