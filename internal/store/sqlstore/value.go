package sqlstore

import (
	"encoding/json"
	"time"
	"unicode/utf8"

	"github.com/authsvc/authsvc/internal/fault"
)

// maxText bounds every text that is stored; the doors' own limits are far below it.
const maxText = 64 << 10

// micros is a time as stored; the zero time is 0.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// instantOf is the time of a column.
func instantOf(v int64) time.Time {
	if v == 0 {
		return time.Time{}
	}
	return time.UnixMicro(v).UTC()
}

func ttl(v int64) time.Duration { return time.Duration(v) * time.Microsecond }

// storable refuses text that the engines would not give back as it was: PostgreSQL has no NUL and only UTF-8.
func storable(field string, values ...string) error {
	for _, s := range values {
		if !legible(s) {
			return fault.Field(field, "must be UTF-8 without NUL, at most 64 KiB")
		}
	}
	return nil
}

func legible(s string) bool {
	if len(s) > maxText || !utf8.ValidString(s) {
		return false
	}
	for i := range len(s) {
		if s[i] == 0 {
			return false
		}
	}
	return true
}

// encodeList gives a list of strings as JSON.
func encodeList(list []string) string {
	if len(list) == 0 {
		return "[]"
	}
	b, err := json.Marshal(list)
	if err != nil { // strings always marshal
		panic(err)
	}
	return string(b)
}

func decodeList(s string) ([]string, error) {
	if s == "[]" {
		return nil, nil
	}
	var list []string
	err := json.Unmarshal([]byte(s), &list)
	return list, err
}
