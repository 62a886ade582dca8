package config_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/config"
)

var update = flag.Bool("update", false, "write docs/config.md")

const page = "../../docs/config.md"

// comments holds the doc comments of structs and fields, as "package.Type" and "package.Type.Field".
func comments(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				g, ok := d.(*ast.GenDecl)
				if !ok {
					continue
				}
				for _, s := range g.Specs {
					spec, ok := s.(*ast.TypeSpec)
					if !ok {
						continue
					}
					body, ok := spec.Type.(*ast.StructType)
					if !ok {
						continue
					}
					typeName := f.Name.Name + "." + spec.Name.Name
					out[typeName] = oneLine(g.Doc.Text())
					for _, field := range body.Fields.List {
						for _, n := range field.Names {
							out[typeName+"."+n.Name] = oneLine(field.Doc.Text())
						}
					}
				}
			}
		}
	}
	return out
}

func oneLine(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", `\|`), "<", "&lt;")
}

func render(t *testing.T) string {
	t.Helper()
	docs := comments(t, ".", "../keys", "../limit", "../password", "../server/extauthz")
	var b strings.Builder
	b.WriteString(`# Settings

<!-- Generated from the doc comments by "go generate ./internal/config"; do not edit. -->

The server reads one YAML file (` + "`authsvc serve -config FILE`" + `), and then the environment, which overrides it: the variable of
` + "`http.address` is `AUTHSVC_HTTP_ADDRESS`" + `; lists are written with commas. Unknown keys and unknown ` + "`AUTHSVC_*`" + ` variables are
errors. Durations are written like ` + "`90s`, `30m` or `720h`" + `. ` + "`authsvc config check -config FILE`" + ` says what is wrong,
and warns of what is allowed and to be known of; ` + "`authsvc config print -config FILE`" + ` prints what holds. Secrets stand in files that the settings name, or in the environment, never in the settings; what has a variable and no
setting is such a secret, which nothing prints. A file is the better place: an environment is inherited, and shown to whoever may look at the process.

On SIGHUP the server reads the file again, and checks all of it. ` + "`log.level` and `limits`" + ` count at once; what else has changed is named in the log
and needs a restart; a file in which anything is wrong changes nothing. Certificates are read again when their files change.
`)
	var section func(v reflect.Value, path, about string)
	section = func(v reflect.Value, path, about string) {
		var rows strings.Builder
		type sub struct {
			v           reflect.Value
			path, about string
		}
		var later []sub
		var leaves func(v reflect.Value)
		leaves = func(v reflect.Value) {
			for i := range v.NumField() {
				f := v.Type().Field(i)
				name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
				full := strings.TrimPrefix(path+"."+name, ".")
				variable := f.Tag.Get("env")
				doc := docs[v.Type().String()+"."+f.Name]
				switch {
				case options == "inline":
					leaves(v.Field(i))
					continue
				case doc == "":
					t.Errorf("%s.%s has no doc comment", v.Type(), f.Name)
				}
				if variable != "" {
					variable = config.Variable(path + "." + variable)
					fmt.Fprintf(&rows, "| – | `%s` | – | %s |\n", variable, doc)
					continue
				}
				if f.Type.Kind() == reflect.Struct {
					about := doc
					if extra := docs[f.Type.String()]; path == "" && len(extra) > len(doc) {
						about = extra
					}
					later = append(later, sub{v.Field(i), full, about})
					continue
				}
				fmt.Fprintf(&rows, "| `%s` | `%s` | %s | %s |\n", full, config.Variable(full), fallback(v.Field(i)), doc)
			}
		}
		leaves(v)
		if path != "" {
			fmt.Fprintf(&b, "\n## %s\n\n%s\n", path, about)
		}
		if rows.Len() > 0 {
			b.WriteString("\n| setting | variable | default | meaning |\n|---|---|---|---|\n" + rows.String())
		}
		for _, s := range later {
			section(s.v, s.path, s.about)
		}
	}
	section(reflect.ValueOf(config.Default()), "", "")
	return b.String()
}

func fallback(v reflect.Value) string {
	if d, ok := v.Interface().(time.Duration); ok {
		text := d.String()
		for _, zero := range []string{"m0s", "h0m"} {
			if short, ok := strings.CutSuffix(text, zero); ok {
				text = short + zero[:1]
			}
		}
		return "`" + text + "`"
	}
	if v.Kind() == reflect.Slice || v.Kind() == reflect.String && v.Len() == 0 {
		return "–"
	}
	return fmt.Sprintf("`%v`", v.Interface())
}

func TestTheSettingsPageIsFresh(t *testing.T) {
	t.Parallel()
	want := render(t)
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/config.md is stale; run go generate ./internal/config (-want +got)\n%s", diff)
	}
}

func TestEverySettingHasAVariableOfItsOwn(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for line := range strings.SplitSeq(render(t), "\n") {
		if cells := strings.Split(line, "|"); len(cells) > 3 && strings.Contains(cells[2], "AUTHSVC_") {
			if other, twice := seen[cells[2]]; twice {
				t.Errorf("%s is the variable of%sand of%s", cells[2], other, cells[1])
			}
			seen[cells[2]] = cells[1]
		}
	}
	if len(seen) < 20 {
		t.Errorf("found %d settings only", len(seen))
	}
}
