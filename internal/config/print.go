package config

import (
	"bufio"
	"encoding"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"reflect"
	"strings"
	"time"
)

// Print writes the configuration as YAML that Load reads back to the same Config. Secrets stand in files that the
// configuration only names; a password that stands in database.url all the same, against the rules, is redacted.
func (c Config) Print(w io.Writer) error {
	b := bufio.NewWriter(w)
	c = c.redacted()
	printSection(b, reflect.ValueOf(&c).Elem(), "")
	return b.Flush()
}

// MarshalJSON gives the same settings as an object in JSON; durations are text such as "5m0s".
func (c Config) MarshalJSON() ([]byte, error) {
	c = c.redacted()
	return json.Marshal(tree(reflect.ValueOf(&c).Elem()))
}

// redacted hides what Validate refuses to have there at all.
func (c Config) redacted() Config {
	u, err := url.Parse(c.Database.URL)
	if err != nil || !(u.Scheme == "postgres" || u.Scheme == "postgresql") && c.Database.URL != "" {
		c.Database.URL = redacted // no URL of a database: what it holds cannot be known
		return c
	}
	changed := false
	if _, has := u.User.Password(); has {
		u.User, changed = url.UserPassword(u.User.Username(), redacted), true
	}
	q := u.Query()
	for _, name := range []string{"password", "sslpassword"} {
		if q.Has(name) {
			q.Set(name, redacted)
			u.RawQuery, changed = q.Encode(), true
		}
	}
	if changed {
		c.Database.URL = u.String()
	}
	return c
}

func tree(v reflect.Value) map[string]any {
	out := map[string]any{}
	for _, f := range fields(v) {
		out[f.name] = f.value.Interface()
		if f.section() {
			out[f.name] = tree(f.value)
		} else if d, ok := out[f.name].(time.Duration); ok {
			out[f.name] = d.String()
		} else if f.value.Kind() == reflect.Slice && f.value.Len() == 0 {
			out[f.name] = []any{}
		}
	}
	return out
}

func printSection(w io.Writer, v reflect.Value, indent string) {
	for _, f := range fields(v) {
		if f.section() {
			fmt.Fprintf(w, "%s%s:\n", indent, f.name)
			printSection(w, f.value, indent+"  ")
			continue
		}
		fmt.Fprintf(w, "%s%s: %s\n", indent, f.name, value(f.value))
	}
}

// value gives a setting in YAML's flow style; a JSON string is a YAML one.
func value(v reflect.Value) string {
	if v.Kind() == reflect.Slice {
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = value(v.Index(i))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		if err != nil {
			return `""`
		}
		return quote(string(text))
	}
	if d, ok := v.Interface().(time.Duration); ok {
		return d.String()
	}
	if v.Kind() == reflect.String {
		return quote(v.String())
	}
	return fmt.Sprint(v.Interface())
}

func quote(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(s) != nil {
		return `""`
	}
	return strings.TrimSuffix(b.String(), "\n")
}
