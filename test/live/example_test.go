package live

import (
	"bufio"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestTheTwoServicesOfTheExample runs the example as its README says, and revokes by either of the ways that it offers.
func TestTheTwoServicesOfTheExample(t *testing.T) {
	t.Parallel()
	example := filepath.Join(t.TempDir(), "two-services")
	if out, err := exec.Command("go", "build", "-o", example, "../../examples/two-services").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, revoke := range map[string]func(t *testing.T, command string, stdin io.Closer){
		"Enter": func(t *testing.T, _ string, stdin io.Closer) {
			t.Helper()
			if err := stdin.Close(); err != nil {
				t.Error(err)
			}
		},
		"another terminal": func(t *testing.T, command string, _ io.Closer) {
			t.Helper()
			args := strings.Fields(command)
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Env = process().Env
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", command, err, out)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(example)
			cmd.Env = process().Env
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var said, complaints strings.Builder
			cmd.Stderr = &complaints
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM) }) // if it has not ended
			for lines := bufio.NewScanner(io.TeeReader(out, &said)); lines.Scan(); {
				if command := strings.TrimSpace(lines.Text()); strings.Contains(command, " session revoke ") {
					revoke(t, command, stdin)
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v\n%s%s", err, said.String(), complaints.String())
			}
			for _, want := range []string{"orders refused a call:  Unauthenticated TOKEN_REVOKED", "stock ended the stream: Unauthenticated TOKEN_REVOKED"} {
				if !strings.Contains(said.String(), want) {
					t.Errorf("it does not say %q:\n%s", want, said.String())
				}
			}
		})
	}
}
