// Package authsvc_test checks the house: which room may import which, and where each foreign module lives. The rules
// are data; a broken one fails with its own sentence.
package authsvc_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "github.com/authsvc/authsvc"

// A room is a package, or with a trailing "/..." a folder of them. Imports point down: to a lower floor, or through a door.
type room struct {
	pattern string
	floor   int
}

// floors holds every room of the house. A new package gets its line here first.
var floors = []room{
	{"verify", 0}, {"gen/...", 0}, {"internal/fault", 0}, {"internal/ids", 0}, {"internal/cookie", 0},
	{"internal/proxy", 0},
	{"guard", 1}, {"internal/oauth2", 1}, {"internal/password", 1},
	{"internal/account", 2}, {"internal/client", 2}, {"internal/session", 2}, {"internal/grant", 2},
	{"internal/token", 2}, {"internal/keys", 2}, {"internal/revocation", 2}, {"internal/audit", 2},
	{"internal/limit", 2}, {"internal/limit/limittest", 3}, {"internal/journal", 2}, {"internal/instance", 2},
	{"internal/service", 3},
	{"internal/server/...", 4}, {"internal/store/machine", 3}, {"internal/store/...", 4}, {"internal/telemetry", 4},
	{"internal/config", 5},
	{"internal/app", 6},
	{"cmd/...", 7},
	{"bench/...", 8}, {"test/...", 8}, {"deploy/...", 8}, // outside the house: they look at all of it
	{"examples/...", 8},
}

// A door lets a room import another on its own floor.
type door struct{ from, to string }

// doors are the imports that do not point down and are right all the same.
var doors = []door{
	{"internal/token", "internal/keys"},
	{"internal/token", "internal/revocation"},
	{"internal/account", "internal/journal"}, {"internal/client", "internal/journal"},
	{"internal/session", "internal/journal"}, {"internal/grant", "internal/journal"},
	{"internal/token", "internal/journal"}, {"internal/keys", "internal/journal"},
	{"internal/revocation", "internal/journal"}, {"internal/audit", "internal/journal"},
	{"internal/limit", "internal/journal"},
	{"gen/...", "gen/..."}, {"examples/...", "examples/..."},
	{"bench/...", "bench/..."}, {"test/...", "test/..."},
}

// A narrow room may import less than its floor would let it.
type narrow struct {
	pattern  string
	allowed  []string
	sentence string
}

// nouns are the rooms of the second floor.
var nouns = []string{"internal/account", "internal/client", "internal/session", "internal/grant", "internal/token",
	"internal/keys", "internal/revocation", "internal/audit", "internal/limit", "internal/journal", "internal/instance"}

// narrows are the rooms that see less than what lies below them.
var narrows = []narrow{
	{"internal/server/...", slices.Concat(nouns, []string{"internal/service", "internal/fault", "internal/ids",
		"internal/cookie", "internal/proxy", "internal/oauth2", "gen/...", "verify", "guard"}),
		"a server door imports service, noun values, fault, ids, cookie, proxy, oauth2, gen, verify and guard; never a store, never another door"},
	{"internal/store/...", slices.Concat(nouns, []string{"internal/fault", "internal/ids", "internal/store/machine"}),
		"a store imports nouns, fault and ids, and what starts one for tests the machine's ports; never service, never a door"},
	{"cmd/...", []string{"internal/app", "internal/config"},
		"a command imports app and config; logic lives below it"},
	{"examples/...", []string{"guard", "verify", "gen/...", "examples/..."},
		"an example shows what others can do: it imports the public packages and gen"},
}

// A home is where an import that is not ours may stand. One room may have two homes' worth of it, no more.
type home struct {
	prefix  string
	rooms   []string
	oneFile bool // in each room, one file only
}

// homes holds every foreign module, and the packages of the standard library that have a place.
var homes = []home{
	{prefix: "github.com/lestrrat-go/jwx/v2", rooms: []string{"verify", "internal/keys"}, oneFile: true},
	{prefix: "github.com/redis/go-redis/v9", rooms: []string{"internal/store/redisstore"}},
	{prefix: "crypto/rand", rooms: []string{"internal/ids", "internal/keys", "internal/store/redistest", "bench/limits"}},
	{prefix: "golang.org/x/crypto/argon2", rooms: []string{"internal/password", "bench/limits"}},
	{prefix: "golang.org/x/text/secure/precis", rooms: []string{"internal/account", "internal/password"}},
	{prefix: "database/sql", rooms: []string{"internal/store/sqlstore", "bench/limits"}},
	{prefix: "github.com/jackc/pgx/v5", rooms: []string{"internal/store/sqlstore", "bench/limits"}},
	{prefix: "modernc.org/sqlite", rooms: []string{"internal/store/sqlstore", "bench/limits"}},
	{prefix: "github.com/pressly/goose/v3", rooms: []string{"internal/store/sqlstore"}},
	{prefix: "github.com/goccy/go-yaml", rooms: []string{"internal/config"}},
	{prefix: "google.golang.org/grpc", rooms: []string{"guard", "internal/server/...", "internal/app", "bench/limits", "examples/..."}},
	{prefix: "google.golang.org/protobuf", rooms: []string{"guard", "internal/server/...", "internal/app", "bench/limits", "examples/..."}},
	{prefix: "google.golang.org/genproto", rooms: []string{"guard", "internal/server/...", "internal/app", "examples/..."}},
	{prefix: "github.com/envoyproxy/go-control-plane", rooms: []string{"internal/server/extauthz"}},
	{prefix: "github.com/grpc-ecosystem/grpc-gateway/v2", rooms: []string{"internal/server/rest"}},
	{prefix: "github.com/prometheus", rooms: []string{"internal/app", "internal/server/...", "internal/telemetry"}},
	{prefix: "go.opentelemetry.io", rooms: []string{"guard", "internal/app", "internal/server/...", "internal/telemetry"}},
	{prefix: "golang.org/x/term", rooms: []string{"cmd/...", "internal/app"}},
	{prefix: "github.com/mattn/go-isatty", rooms: []string{"cmd/...", "internal/app"}},
	{prefix: "golang.org/x/net", rooms: []string{"guard", "internal/server/...", "internal/app"}},
	{prefix: "golang.org/x/sys", rooms: []string{"guard", "internal/app", "internal/store/sqlstore"}},
	{prefix: "golang.org/x/sync", rooms: []string{"verify", "internal/...", "guard"}},
	{prefix: "github.com/google/go-cmp", rooms: []string{"internal/store/storetest"}},
	{prefix: "pgregory.net/rapid", rooms: []string{"internal/store/storetest"}},
	{prefix: "github.com/anishathalye/porcupine", rooms: []string{"internal/store/storetest"}},
}

// public are the packages that other modules import.
var public = []string{"verify", "guard"}

// A source is one Go file and what it imports.
type source struct {
	pkg, file string // pkg is relative to the module; "." is its root
	imports   []string
}

func (s source) test() bool { return strings.HasSuffix(s.file, "_test.go") }

// matches reports whether pkg is the room that pattern names.
func matches(pattern, pkg string) bool {
	folder, tree := strings.CutSuffix(pattern, "/...")
	return pkg == folder || tree && strings.HasPrefix(pkg, folder+"/")
}

func matchesAny(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, pkg) })
}

func floorOf(pkg string) (int, bool) {
	i := slices.IndexFunc(floors, func(r room) bool { return matches(r.pattern, pkg) })
	if i < 0 {
		return 0, false
	}
	return floors[i].floor, true
}

// check gives one sentence for each broken rule.
func check(sources []source) []string {
	var broken []string
	joseFiles := map[string]string{} // room and module → the one file
	for _, s := range sources {
		if _, known := floorOf(s.pkg); !known && !s.test() {
			broken = append(broken, fmt.Sprintf("%s: every package stands on a floor: give %s its line in arch_test.go", s.file, s.pkg))
			continue
		}
		for _, imp := range s.imports {
			sentence := ""
			if inner, ours := strings.CutPrefix(imp, module+"/"); ours {
				sentence = checkOurs(s, inner)
			} else if !s.test() && !matches("gen/...", s.pkg) && !matches("bench/...", s.pkg) && !matches("test/...", s.pkg) {
				sentence = checkForeign(s, imp, joseFiles)
			}
			if sentence != "" {
				broken = append(broken, s.file+" imports "+imp+": "+sentence)
			}
		}
	}
	return broken
}

// checkOurs gives the rule that an import of our own package breaks, or nothing.
func checkOurs(s source, imp string) string {
	if slices.Contains(public, s.pkg) && strings.HasPrefix(imp, "internal/") {
		return "public packages never import internal/, nor do their tests: others must be able to build them"
	}
	if s.test() || s.pkg == imp {
		return "" // a test may look at any floor
	}
	for _, n := range narrows {
		if matches(n.pattern, s.pkg) && !matchesAny(n.allowed, imp) {
			return n.sentence
		}
	}
	if slices.ContainsFunc(doors, func(d door) bool { return matches(d.from, s.pkg) && matches(d.to, imp) }) {
		return ""
	}
	from, _ := floorOf(s.pkg)
	to, known := floorOf(imp)
	switch {
	case !known:
		return "every package stands on a floor"
	case to >= from:
		return fmt.Sprintf("imports point down: %s is on floor %d, %s on floor %d", s.pkg, from, imp, to)
	}
	return ""
}

// checkForeign gives the rule that an import of somebody else's package breaks, or nothing.
func checkForeign(s source, imp string, oneFile map[string]string) string {
	i := slices.IndexFunc(homes, func(h home) bool { return imp == h.prefix || strings.HasPrefix(imp, h.prefix+"/") })
	if i < 0 {
		if first, _, _ := strings.Cut(imp, "/"); strings.Contains(first, ".") {
			return "a foreign module has one home: give it its line in arch_test.go, or do without"
		}
		return ""
	}
	h := homes[i]
	if !matchesAny(h.rooms, s.pkg) {
		return fmt.Sprintf("%s has its home in %s", h.prefix, strings.Join(h.rooms, " and "))
	}
	if h.oneFile {
		key := s.pkg + " " + h.prefix
		if other, taken := oneFile[key]; taken && other != s.file {
			return fmt.Sprintf("%s stays behind one file of %s, which is %s", h.prefix, s.pkg, other)
		}
		oneFile[key] = s.file
	}
	return ""
}

// load parses the imports of every Go file of this module, whatever its build tags.
func load(t *testing.T) []source {
	t.Helper()
	var sources []source
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if name := d.Name(); file != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || file == "tools") {
				return filepath.SkipDir
			}
			return nil
		case filepath.Ext(file) != ".go":
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		s := source{pkg: path.Dir(filepath.ToSlash(file)), file: filepath.ToSlash(file)}
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, imp)
		}
		sources = append(sources, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sources
}

func TestHouse(t *testing.T) {
	t.Parallel()
	sources := load(t)
	if len(sources) < 10 {
		t.Fatalf("found %d Go files; the walk is broken", len(sources))
	}
	for _, sentence := range check(sources) {
		t.Error(sentence)
	}
}

func TestCheckCatchesWhatIsPlanted(t *testing.T) {
	t.Parallel()
	our := func(pkg string) string { return module + "/" + pkg }
	tests := []struct {
		name    string
		pkg     string
		file    string
		imports string
		want    string // empty: the import is right
	}{
		{"a noun may import a lower floor", "internal/session", "a.go", our("internal/ids"), ""},
		{"a noun may import the journal", "internal/session", "a.go", our("internal/journal"), ""},
		{"a noun imports no other noun", "internal/account", "a.go", our("internal/session"),
			"imports point down: internal/account is on floor 2, internal/session on floor 2"},
		{"a token may import keys", "internal/token", "a.go", our("internal/keys"), ""},
		{"keys imports no token", "internal/keys", "a.go", our("internal/token"),
			"imports point down: internal/keys is on floor 2, internal/token on floor 2"},
		{"a noun knows no service", "internal/client", "a.go", our("internal/service"),
			"imports point down: internal/client is on floor 2, internal/service on floor 3"},
		{"a server door imports no store", "internal/server/rpc", "a.go", our("internal/store/sqlstore"), narrows[0].sentence},
		{"a server door imports no other door", "internal/server/rest", "a.go", our("internal/server/rpc"), narrows[0].sentence},
		{"a server door imports no password hashing", "internal/server/rpc", "a.go", our("internal/password"), narrows[0].sentence},
		{"a store imports no service", "internal/store/sqlstore", "a.go", our("internal/service"), narrows[1].sentence},
		{"a command imports no store", "cmd/authsvc", "a.go", our("internal/store/sqlstore"), narrows[2].sentence},
		{"a public package imports nothing internal", "verify", "a.go", our("internal/ids"),
			"public packages never import internal/, nor do their tests: others must be able to build them"},
		{"a public package's test imports nothing internal", "guard", "a_test.go", our("internal/ids"),
			"public packages never import internal/, nor do their tests: others must be able to build them"},
		{"a test of an inner room may look anywhere", "internal/session", "a_test.go", our("internal/store/sqlstore"), ""},
		{"a package without a floor is refused", "internal/util", "a.go", "fmt",
			"every package stands on a floor: give internal/util its line in arch_test.go"},
		{"randomness has its home in ids and keys", "internal/session", "a.go", "crypto/rand",
			"crypto/rand has its home in internal/ids and internal/keys and internal/store/redistest and bench/limits"},
		{"the JOSE library has its home in verify and keys", "internal/token", "a.go", "github.com/lestrrat-go/jwx/v2/jws",
			"github.com/lestrrat-go/jwx/v2 has its home in verify and internal/keys"},
		{"grpc stays at the doors", "internal/service", "a.go", "google.golang.org/grpc/codes",
			"google.golang.org/grpc has its home in guard and internal/server/... and internal/app and bench/limits and examples/..."},
		{"generated code is exempt from homes", "gen/authsvc/v1", "a.go", "google.golang.org/grpc", ""},
		{"a module without a home is refused", "internal/service", "a.go", "example.com/left/pad",
			"a foreign module has one home: give it its line in arch_test.go, or do without"},
		{"the standard library is at home everywhere", "internal/service", "a.go", "encoding/json", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			file := tt.pkg + "/" + tt.file
			var want []string
			switch {
			case tt.want != "" && tt.pkg == "internal/util":
				want = []string{file + ": " + tt.want}
			case tt.want != "":
				want = []string{file + " imports " + tt.imports + ": " + tt.want}
			}
			if diff := cmp.Diff(want, check([]source{{pkg: tt.pkg, file: file, imports: []string{tt.imports}}})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestCheckKeepsTheJOSELibraryBehindOneFile(t *testing.T) {
	t.Parallel()
	jose := []string{"github.com/lestrrat-go/jwx/v2/jws"}
	got := check([]source{{"verify", "verify/jose.go", jose}, {"verify", "verify/claims.go", jose}, {"internal/keys", "internal/keys/jose.go", jose}})
	want := []string{"verify/claims.go imports github.com/lestrrat-go/jwx/v2/jws: " +
		"github.com/lestrrat-go/jwx/v2 stays behind one file of verify, which is verify/jose.go"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
