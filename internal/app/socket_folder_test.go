package app_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/internal/app"
)

// TestTheAdminSocketMakesItsFolder has a folder that is not this user's alone, as a volume that a container is given: below it the
// server makes one of its own.
func TestTheAdminSocketMakesItsFolder(t *testing.T) {
	t.Parallel()
	volume := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(volume, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := app.ListenSocket(filepath.Join(volume, "admin.sock")); err == nil || !strings.Contains(err.Error(), "others may write to the folder") {
		t.Errorf("in the volume itself: %v", err)
	}
	if _, err := app.ListenSocket(filepath.Join(volume, "none", "admin", "admin.sock")); err == nil {
		t.Error("it made two folders")
	}
	for range 2 { // the second time it is there
		l, err := app.ListenSocket(filepath.Join(volume, "admin", "admin.sock"))
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(volume, "admin")); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("the folder is %v, %v", info, err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
