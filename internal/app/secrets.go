package app

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/session"
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
		ID   byte   `json:"id"`
		Key  string `json:"key"`
		Gone bool   `json:"gone,omitempty"`
	} `json:"keys"`
}

// loadSealer reads the key-encryption keys.
func loadSealer(path string) (*keys.Sealer, error) {
	var f kekFile
	if err := readSecret(path, &f); err != nil {
		return nil, err
	}
	keks := make([]keys.KEK, 0, len(f.Keys))
	for _, k := range f.Keys {
		raw, err := decodeKey(path, k.Key)
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
func loadRefreshKeys(path, issuer string) (*session.RefreshKeys, error) {
	var f refreshFile
	if err := readSecret(path, &f); err != nil {
		return nil, err
	}
	list := make([]session.RefreshKey, 0, len(f.Keys))
	for _, k := range f.Keys {
		key := session.RefreshKey{ID: k.ID, Gone: k.Gone}
		if !k.Gone || k.Key != "" {
			raw, err := decodeKey(path, k.Key)
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

// decodeKey never quotes the key in its error.
func decodeKey(path, text string) ([]byte, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != 32 {
		return nil, fmt.Errorf("%s: every key must be the unpadded base64url of 32 bytes", path)
	}
	return raw, nil
}

// readSecret refuses a file that others may read, and anything but strict JSON.
func readSecret(path string, into any) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s: mode is %04o; a key file must be readable by its owner alone (chmod 600)", path, info.Mode().Perm())
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%s: not the JSON of a key file", path) // the decoder's error may quote the file
	}
	if d.More() {
		return fmt.Errorf("%s: something follows the JSON", path)
	}
	return nil
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
