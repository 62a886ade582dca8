package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"
)

// maxPassword bounds what is read as a password, in bytes; the policy's own limit is lower.
const maxPassword = 4096

// password reads a new password: twice without echo from a terminal, otherwise one line from stdin. It never comes from
// the command line, where every process of the machine could read it.
func (r *call) password() (string, error) {
	if f, ok := r.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		first, err := r.ask(f, "New password: ")
		if err != nil {
			return "", err
		}
		second, err := r.ask(f, "Once more: ")
		if err == nil && first != second {
			err = errors.New("the two passwords differ")
		}
		return first, err
	}
	text, err := io.ReadAll(io.LimitReader(r.stdin, maxPassword+1))
	if err != nil {
		return "", fmt.Errorf("read the password from stdin: %w", err)
	}
	line := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	switch {
	case line == "":
		return "", errors.New("stdin holds no password")
	case len(line) > maxPassword:
		return "", fmt.Errorf("the password is longer than %d bytes", maxPassword)
	case strings.ContainsAny(line, "\r\n"):
		return "", errors.New("stdin holds more than one line; a password is one")
	}
	return line, nil
}

// ask reads one line without echo. An interrupt gives the terminal its echo back before the command ends.
func (r *call) ask(f *os.File, prompt string) (string, error) {
	fd := int(f.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	ctx, stop := signal.NotifyContext(r.ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	type answer struct {
		text []byte
		err  error
	}
	answered := make(chan answer, 1)
	fmt.Fprint(r.stderr, prompt)
	go func() { // ends with the line, or with the process
		text, err := term.ReadPassword(fd)
		answered <- answer{text, err}
	}()
	var a answer
	select {
	case a = <-answered:
	case <-ctx.Done():
		a.err = errors.Join(errors.New("interrupted; nothing was changed"), term.Restore(fd, before))
	}
	fmt.Fprintln(r.stderr)
	switch {
	case errors.Is(a.err, io.EOF), a.err == nil && len(a.text) == 0:
		return "", errors.New("no password was typed; nothing was changed")
	case len(a.text) > maxPassword:
		return "", fmt.Errorf("the password is longer than %d bytes", maxPassword)
	}
	return string(a.text), a.err
}
