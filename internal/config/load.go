package config

import (
	"encoding"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

//go:generate go test -run ^TestTheSettingsPageIsFresh$ . -update

const (
	// envPrefix begins every variable that overrides a setting, and envTest those that belong to the tests.
	envPrefix = "AUTHSVC_"
	envTest   = "AUTHSVC_TEST_"

	// maxFile is the largest file that is read, in bytes.
	maxFile = 64 << 10
)

// Load gives the defaults, overridden by the YAML file at path, overridden by the environment: the setting http.address is
// the variable AUTHSVC_HTTP_ADDRESS, a list is written with commas. Without a path there is no file. Unknown keys and
// variables, keys that stand twice, keys without a value, anchors, aliases and tags are errors; all are reported together.
// What the settings say is not checked here, see Validate.
func Load(path string, environ []string) (Config, error) {
	c := Default()
	var problems []error
	if path != "" {
		text, err := read(path)
		if err != nil {
			return Config{}, fmt.Errorf("config: %w", err)
		}
		for _, err := range parse(&c, text) {
			problems = append(problems, fmt.Errorf("%s: %w", path, err))
		}
	}
	problems = append(problems, override(&c, environ)...)
	if len(problems) > 0 {
		return Config{}, fmt.Errorf("config: %w", errors.Join(problems...))
	}
	return c, nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s: is larger than %d KiB", path, maxFile>>10)
	}
	return text, err
}

// parse puts a YAML document into c. Its errors give line and setting, and nothing else of the text: a secret may have
// been pasted there by mistake.
func parse(c *Config, text []byte) []error {
	file, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey()) // section names those
	if err != nil {
		return []error{errors.New(syntax(err))}
	}
	if len(file.Docs) > 1 {
		return []error{errors.New("holds more than one document")}
	}
	for _, d := range file.Docs {
		switch body := d.Body.(type) {
		case nil, *ast.CommentGroupNode:
		case *ast.MappingNode, *ast.MappingValueNode:
			return section(body, reflect.ValueOf(c).Elem(), "")
		default:
			return []error{errors.New("is not a mapping of settings")}
		}
	}
	return nil
}

// syntax gives the first line of a parser's error, without the excerpt that follows it.
func syntax(err error) string {
	first, _, _ := strings.Cut(yaml.FormatError(err, false, false), "\n")
	if i := strings.IndexByte(first, ']'); strings.HasPrefix(first, "[") && i > 0 {
		return "line " + strings.Split(first[1:i], ":")[0] + ": is not valid YAML:" + withoutQuotes(first[i+1:])
	}
	return "is not valid YAML"
}

// withoutQuotes cuts what a parser quotes of the text.
func withoutQuotes(s string) string {
	if i := strings.IndexAny(s, "\"'`"); i >= 0 {
		return strings.TrimRight(s[:i], " ") + " …"
	}
	return s
}

// section puts a mapping into a struct.
func section(node ast.Node, into reflect.Value, path string) []error {
	var entries []*ast.MappingValueNode
	switch n := node.(type) {
	case *ast.MappingNode:
		entries = n.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{n}
	default:
		return []error{at(node, path, "is a section: its settings stand indented below it")}
	}
	known := fields(into)
	seen := map[string]bool{}
	var problems []error
	for _, e := range entries {
		key, ok := e.Key.(*ast.StringNode)
		if !ok {
			problems = append(problems, at(e, path, "a key must be a plain name"))
			continue
		}
		name := join(path, key.Value)
		i := slices.IndexFunc(known, func(f field) bool { return f.name == key.Value })
		switch {
		case i < 0 && secret(into, key.Value):
			problems = append(problems, at(e.Key, name, "does not belong into this file: name a file that holds it by "+key.Value+"_file, or set "+Variable(name)))
		case i < 0:
			problems = append(problems, at(e.Key, clip(name), "is not a setting"))
		case seen[key.Value]:
			problems = append(problems, at(e.Key, name, "stands twice"))
		case known[i].section():
			problems = append(problems, section(e.Value, known[i].value, name)...)
		default:
			if err := leaf(e.Value, known[i].value); err != nil {
				problems = append(problems, at(e.Key, name, err.Error()))
			}
		}
		seen[key.Value] = true
	}
	return problems
}

func leaf(node ast.Node, into reflect.Value) error {
	list, ok := node.(*ast.SequenceNode)
	if into.Kind() != reflect.Slice {
		text, err := scalar(node)
		if err != nil {
			return err
		}
		return set(into, text)
	}
	if !ok {
		return errors.New("is a list: write [a, b]")
	}
	texts := make([]string, 0, len(list.Values))
	for _, v := range list.Values {
		text, err := scalar(v)
		if err != nil {
			return err
		}
		texts = append(texts, text)
	}
	return setList(into, texts)
}

func scalar(node ast.Node) (string, error) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, nil
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, nil
	case nil, *ast.NullNode:
		return "", errors.New("has no value: give one, or remove the line")
	case *ast.SequenceNode:
		return "", errors.New("is not a list")
	case *ast.MappingNode, *ast.MappingValueNode:
		return "", errors.New("is not a section")
	default:
		return "", errors.New("must be a plain or quoted value; anchors, aliases, tags and blocks are not accepted")
	}
}

func at(node ast.Node, path, problem string) error {
	line := 0
	if t := node; t != nil && t.GetToken() != nil && t.GetToken().Position != nil {
		line = t.GetToken().Position.Line
	}
	if path == "" {
		return fmt.Errorf("line %d: %s", line, problem)
	}
	return fmt.Errorf("line %d: %s: %s", line, path, problem)
}

func clip(name string) string {
	if len(name) > 100 {
		name = name[:100] + "…"
	}
	return strings.ToValidUTF8(name, "?")
}

// override puts the environment's variables into c.
func override(c *Config, environ []string) []error {
	byName := map[string]reflect.Value{}
	name := func(path string, v reflect.Value) { byName[Variable(path)] = v }
	visit(reflect.ValueOf(c).Elem(), "", name)
	secrets(reflect.ValueOf(c).Elem(), "", name)
	var problems []error
	for _, pair := range environ {
		name, text, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, envPrefix) || strings.HasPrefix(name, envTest) {
			continue
		}
		v, ok := byName[name]
		if !ok {
			problems = append(problems, fmt.Errorf("environment: %s: is not a setting", clip(name)))
			continue
		}
		err := error(nil)
		if v.Kind() == reflect.Slice {
			err = setList(v, splitList(text))
		} else {
			err = set(v, text)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("environment: %s: %w", name, err))
		}
	}
	return problems
}

// Variable gives the name of the environment variable that overrides the setting at a path such as "http.address".
func Variable(path string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
}

func splitList(text string) []string {
	var out []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

func setList(into reflect.Value, texts []string) error {
	list := reflect.MakeSlice(into.Type(), len(texts), len(texts))
	for i, text := range texts {
		if err := set(list.Index(i), text); err != nil {
			return fmt.Errorf("entry %d: %w", i+1, err)
		}
	}
	if len(texts) == 0 {
		list = reflect.Zero(into.Type())
	}
	into.Set(list)
	return nil
}

// set puts one text into one field. Its errors do not repeat the text.
func set(into reflect.Value, text string) error {
	if u, ok := into.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if u.UnmarshalText([]byte(text)) != nil {
			return errors.New("is not a network such as 10.0.0.0/8")
		}
		return nil
	}
	switch {
	case into.Type() == reflect.TypeFor[time.Duration]():
		d, err := time.ParseDuration(text)
		if err != nil {
			return errors.New("is not a duration such as 90s, 30m or 720h")
		}
		into.SetInt(int64(d))
	case into.Kind() == reflect.String:
		into.SetString(text)
	case into.Kind() == reflect.Bool:
		if text != "true" && text != "false" {
			return errors.New("must be true or false")
		}
		into.SetBool(text == "true")
	case into.CanInt():
		n, err := strconv.ParseInt(text, 10, into.Type().Bits())
		if err != nil {
			return errors.New("is not a whole number in range")
		}
		into.SetInt(n)
	case into.CanUint():
		n, err := strconv.ParseUint(text, 10, into.Type().Bits())
		if err != nil {
			return errors.New("is not a whole number in range, zero or more")
		}
		into.SetUint(n)
	case into.CanFloat():
		f, err := strconv.ParseFloat(text, into.Type().Bits())
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return errors.New("is not a number such as 0.01")
		}
		into.SetFloat(f)
	default:
		return fmt.Errorf("the type %s cannot be set", into.Type())
	}
	return nil
}

// field is one key of a section, with where its value goes.
type field struct {
	name  string
	value reflect.Value
}

// section reports whether the field holds settings of its own.
func (f field) section() bool {
	_, text := f.value.Addr().Interface().(encoding.TextUnmarshaler)
	return f.value.Kind() == reflect.Struct && !text
}

// fields gives the keys of a section in their order; inlined structs give theirs.
func fields(v reflect.Value) []field {
	var out []field
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag.Get("yaml")
		switch name, options, _ := strings.Cut(tag, ","); {
		case options == "inline":
			out = append(out, fields(v.Field(i))...)
		case name != "":
			out = append(out, field{name, v.Field(i)})
		}
	}
	return out
}

// visit calls fn for every setting, by its path, in the order of the structs.
func visit(v reflect.Value, path string, fn func(path string, v reflect.Value)) {
	for _, f := range fields(v) {
		if name := join(path, f.name); f.section() {
			visit(f.value, name, fn)
		} else {
			fn(name, f.value)
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
