package app

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/authsvc/authsvc/internal/config"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// kekFile and refreshFile are the two key files; see config.Secrets for their shape.
type kekFile struct {
	Keys []struct {
		ID  string `json:"id"`
		Key string `json:"key"`
	} `json:"keys"`
}

type refreshFile struct {
	Keys []struct {
		ID   *byte  `json:"id"`
		Key  string `json:"key"`
		Gone bool   `json:"gone,omitempty"`
	} `json:"keys"`
}

// source is where a secret stands, a file or a variable of the environment; name is which, for messages.
type source struct {
	name  string
	value config.Secret // of the variable; the file is read where it is empty
}

func from(path string, value config.Secret, setting string) source {
	if value == "" {
		return source{name: path}
	}
	return source{name: config.Variable(setting), value: value}
}

func kekSource(c config.Secrets) source {
	return from(c.KeyEncryptionKeysFile, c.KeyEncryptionKeys, "secrets.key_encryption_keys")
}

func refreshSource(c config.Secrets) source {
	return from(c.RefreshKeysFile, c.RefreshKeys, "secrets.refresh_keys")
}

// read gives what stands there; a file must be private.
func (s source) read() ([]byte, error) {
	if s.value != "" {
		return []byte(s.value), nil
	}
	return privateFile(s.name)
}

// decode reads a key file's JSON.
func (s source) decode(into any) error {
	text, err := s.read()
	if err != nil {
		return err
	}
	return parseSecret(s.name, text, into)
}

// loadSealer reads the key-encryption keys.
func loadSealer(c config.Secrets) (*keys.Sealer, error) {
	var f kekFile
	path := kekSource(c).name
	if err := kekSource(c).decode(&f); err != nil {
		return nil, err
	}
	keks := make([]keys.KEK, 0, len(f.Keys))
	seen := map[[32]byte]bool{}
	for _, k := range f.Keys {
		raw, err := decodeKey(path, k.Key, seen)
		if err != nil {
			return nil, err
		}
		keks = append(keks, keys.KEK{ID: k.ID, Key: raw})
	}
	s, err := keys.NewSealer(keks)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// loadRefreshKeys reads the refresh keys.
func loadRefreshKeys(c config.Secrets, issuer string) (*session.RefreshKeys, error) {
	var f refreshFile
	path := refreshSource(c).name
	if err := refreshSource(c).decode(&f); err != nil {
		return nil, err
	}
	list := make([]session.RefreshKey, 0, len(f.Keys))
	seen := map[[32]byte]bool{}
	for _, k := range f.Keys {
		if k.ID == nil {
			return nil, fmt.Errorf("%s: a key has no id: give it a number from 0 to 255", path)
		}
		key := session.RefreshKey{ID: *k.ID, Gone: k.Gone}
		if !k.Gone || k.Key != "" {
			raw, err := decodeKey(path, k.Key, seen)
			if err != nil {
				return nil, err
			}
			key.Key = raw
		}
		list = append(list, key)
	}
	r, err := session.NewRefreshKeys(issuer, list)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// decodeKey never quotes the key in its error. It refuses what no random generator made: zeros, and the same key again.
func decodeKey(path, text string, seen map[[32]byte]bool) ([]byte, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != 32 {
		return nil, fmt.Errorf("%s: every key must be the unpadded base64url of 32 bytes", path)
	}
	key := [32]byte(raw)
	switch {
	case key == [32]byte{}:
		return nil, fmt.Errorf("%s: a key is all zeros: take 32 random bytes", path)
	case seen[key]:
		return nil, fmt.Errorf("%s: two entries hold the same key: take 32 random bytes for each", path)
	}
	seen[key] = true
	return raw, nil
}

// distinctSecrets refuses a key that stands in both files: whoever learns it there must not have it here. Both files have
// been found sound.
func distinctSecrets(c config.Secrets) error {
	var kek kekFile
	var refresh refreshFile
	if err := errors.Join(kekSource(c).decode(&kek), refreshSource(c).decode(&refresh)); err != nil {
		return err
	}
	for _, k := range kek.Keys {
		for _, r := range refresh.Keys {
			if k.Key == r.Key {
				return fmt.Errorf("%s: holds a key that is a key-encryption key, too: take 32 random bytes for each", refreshSource(c).name)
			}
		}
	}
	return nil
}

// maxSecret is the largest file of secrets, in bytes.
const maxSecret = 64 << 10

// databaseOptions says where the database is, with the password that stands in a file of its own, or in the environment.
func databaseOptions(c config.Database) (sqlstore.Options, error) {
	o := sqlstore.Options{Path: c.Path, URL: c.URL}
	if c.PasswordFile == "" && c.Password == "" {
		return o, nil
	}
	s := from(c.PasswordFile, c.Password, "database.password")
	text, err := s.read()
	if err != nil {
		return o, fmt.Errorf("database.password_file: %w", err)
	}
	if o.Password = strings.TrimRight(string(text), "\r\n"); o.Password == "" {
		return o, fmt.Errorf("database.password_file: %s is empty", s.name)
	}
	return o, nil
}

// privateFile reads a file that only its owner may read, or that root has handed over.
func privateFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // to open a pipe may take for ever
		return nil, fmt.Errorf("%s: is not a regular file", path)
	}
	if info.Mode().Perm()&0o077 != 0 && !config.HandedOver(info) {
		return nil, fmt.Errorf("%s: mode is %04o; a key file must be readable by its owner alone (chmod 600)", path, info.Mode().Perm())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSecret))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return text, nil
}

// readSecret refuses a file that others may read, and anything but strict JSON. Its errors quote nothing of the file.
func readSecret(path string, into any) error { return source{name: path}.decode(into) }

func parseSecret(path string, text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if !distinctNames(d) {
		return fmt.Errorf(`%s: is not JSON, or a name stands twice in it; a key file is {"keys": [{"id": …, "key": "<32 bytes, base64url>"}]}`, path)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: something follows the JSON", path)
	}
	d = json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf(`%s: has a field or a value that does not belong there; a key file is {"keys": [{"id": …, "key": "<32 bytes, base64url>"}]}`, path)
	}
	return nil
}

// distinctNames reads one JSON value and reports whether it is whole and no object in it has a name twice, in any case:
// the decoder would let the last one count.
func distinctNames(d *json.Decoder) bool {
	t, err := d.Token()
	if err != nil {
		return false
	}
	open, ok := t.(json.Delim)
	if !ok {
		return true
	}
	seen := map[string]bool{}
	for d.More() {
		if open == '{' {
			name, err := d.Token()
			text, ok := name.(string)
			if text = strings.ToLower(text); err != nil || !ok || seen[text] {
				return false
			}
			seen[text] = true
		}
		if !distinctNames(d) {
			return false
		}
	}
	_, err = d.Token()
	return err == nil
}

// newKey gives 32 random bytes as they stand in a key file.
func newKey() string { return ids.Secret() }

// writeWhole writes a file of mode 0600 whole or not at all: to a name of its own, synced, then renamed.
func writeWhole(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // CreateTemp makes mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(content); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
