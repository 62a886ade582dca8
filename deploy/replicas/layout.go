package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// replicas is how many there are.
const replicas = 3

// Ports, counted from the first: nginx has 0 for REST and 1 for gRPC; replica n has 10n for REST, 10n+1 for gRPC, 10n+2 for ops.
const (
	restPort    = 0
	grpcPort    = 1
	primaryPort = 40
	standbyPort = 41
	redisPort   = 50
	lastPort    = redisPort
)

// longestDir keeps the paths of the replicas' admin sockets within the 107 bytes of a Unix socket's.
const longestDir = 80

// layout says where everything is. All paths are absolute.
type layout struct {
	dir, shipped, authsvc string
	first                 int
}

func newLayout(dir, shipped, authsvc string, first int) (*layout, error) {
	l := &layout{dir: dir, shipped: shipped, authsvc: authsvc, first: first}
	if first < 1024 || first+lastPort > 65535 {
		return nil, fmt.Errorf("-port %d: must be 1024 to %d", first, 65535-lastPort)
	}
	for _, p := range []*string{&l.dir, &l.shipped, &l.authsvc} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, err
		}
		*p = abs
	}
	switch {
	case len(l.dir) > longestDir:
		return nil, fmt.Errorf("-dir %s: is longer than %d bytes, too long for the sockets in it: take another folder", l.dir, longestDir)
	case strings.ContainsAny(l.dir, " \t\n'\"\\$;{}#%?&,"):
		return nil, fmt.Errorf("-dir %s: has a character that means something in a configuration: take another folder", l.dir)
	}
	if _, err := os.Stat(l.authsvc); err != nil {
		return nil, fmt.Errorf("-authsvc: %w", err)
	}
	_, absent := os.Stat(l.dir)
	for _, d := range []string{l.dir, l.path("log"), l.path("pid"), l.path("nginx"), l.path("redis")} {
		if err := os.MkdirAll(d, 0o711); err != nil { //nolint:gosec // PostgreSQL, which is never root, passes through
			return nil, err
		}
	}
	if absent != nil { // we made it: whatever umask says, PostgreSQL's user passes
		if err := os.Chmod(l.dir, 0o711); err != nil { //nolint:gosec // it passes, and reads nothing
			return nil, err
		}
	}
	return l, nil
}

// path names something in the folder.
func (l *layout) path(names ...string) string {
	return filepath.Join(append([]string{l.dir}, names...)...)
}

func (l *layout) secret(name string) string { return l.path("secrets", name) }

func (l *layout) port(n int) int { return l.first + n }

func (l *layout) address(n int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(l.port(n))) }

func (l *layout) replicaDir(n int) string { return l.path("replica-" + strconv.Itoa(n)) }

// lock holds the folder against a second start until it is released.
func (l *layout) lock() (release func(), err error) {
	f, err := os.OpenFile(l.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("replicas run in %s already: stop them, or give another folder and other ports (make replicas DIR=… PORT=…)", l.dir)
		}
		return nil, err
	}
	return func() { f.Close() }, nil
}

// portsFree looks before anything is started, so that a port in use is the first thing that is said.
func (l *layout) portsFree() error {
	used := map[int]string{restPort: "nginx", grpcPort: "nginx", primaryPort: "PostgreSQL", standbyPort: "the standby", redisPort: "Redis"}
	for n := 1; n <= replicas; n++ {
		for i := range 3 {
			used[10*n+i] = "replica " + strconv.Itoa(n)
		}
	}
	var taken []error
	for n, who := range used {
		conn, err := net.Listen("tcp", l.address(n))
		if err != nil {
			taken = append(taken, fmt.Errorf("port %d, for %s, is taken: stop what has it, or give other ports (make replicas PORT=28000)", l.port(n), who))
			continue
		}
		conn.Close()
	}
	slices.SortFunc(taken, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(taken...)
}

// rendered gives a configuration that we ship with words replaced in one pass, each of which must be there.
func (l *layout) rendered(file string, words ...string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(l.shipped, file))
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(words); i += 2 {
		if !strings.Contains(string(text), words[i]) {
			return nil, fmt.Errorf("%s has no %q", file, words[i])
		}
	}
	return []byte(strings.NewReplacer(words...).Replace(string(text))), nil
}

// program finds a program where Debian has it, which for some is not in everybody's PATH.
func program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	path := filepath.Join("/usr/sbin", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not installed: deploy/replicas/install says how", name)
	}
	return path, nil
}

// environ is the environment without variables that would change a replica's settings, or what PostgreSQL's programs connect to.
func environ(more ...string) []string {
	return append(slices.DeleteFunc(os.Environ(), func(pair string) bool {
		return strings.HasPrefix(pair, "AUTHSVC_") || strings.HasPrefix(pair, "PG") || strings.HasPrefix(pair, "NOTIFY_SOCKET=")
	}), more...)
}
