package config

import (
	"log/slog"
	"reflect"
)

// Secret is a value that comes from the environment alone and is printed nowhere. It has no setting: the file names the file that
// holds the same.
type Secret string

const redacted = "redacted"

// String hides it.
func (Secret) String() string { return redacted }

// GoString hides it.
func (Secret) GoString() string { return redacted }

// MarshalText hides it.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue hides it.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// secrets calls fn for every Secret, by the path that gives its variable.
func secrets(v reflect.Value, path string, fn func(path string, v reflect.Value)) {
	for i := range v.NumField() {
		if name := v.Type().Field(i).Tag.Get("env"); name != "" {
			fn(join(path, name), v.Field(i))
		}
	}
	for _, f := range fields(v) {
		if f.section() {
			secrets(f.value, join(path, f.name), fn)
		}
	}
}

// secret reports whether a section has a Secret of this name.
func secret(section reflect.Value, name string) bool {
	for i := range section.NumField() {
		if section.Type().Field(i).Tag.Get("env") == name && name != "" {
			return true
		}
	}
	return false
}

// Changed names the settings in which two configurations differ, in the order of the structs.
func Changed(a, b Config) []string {
	was := map[string]any{}
	visit(reflect.ValueOf(&a).Elem(), "", func(path string, v reflect.Value) { was[path] = v.Interface() })
	var changed []string
	visit(reflect.ValueOf(&b).Elem(), "", func(path string, v reflect.Value) {
		if !reflect.DeepEqual(was[path], v.Interface()) {
			changed = append(changed, path)
		}
	})
	return changed
}
