package extauthz

import (
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// question is what counts of an envoy.service.auth.v3.CheckRequest. The message describes a whole request with all its headers, and
// to decode it into Go's structs would cost more than the verdict does.
type question struct {
	// authorization has every authorization of the request. Envoy sends the headers as a map, in which it has joined several values
	// by commas, or as they came (encode_raw_headers).
	authorization []string
	extensions    []parameter
}

// The numbers of the fields.
const (
	checkAttributes    = 1
	contextRequest     = 4
	contextExtensions  = 10
	requestHTTP        = 2
	httpHeaders        = 3
	httpHeaderMap      = 13
	headerMapHeaders   = 1
	entryKey           = 1
	entryValue         = 2
	headerValueRaw     = 3
	authorizationField = "authorization"
)

// UnmarshalBinary reads the message, strictly where it looks: a map's key that stands twice is kept twice.
func (q *question) UnmarshalBinary(data []byte) error {
	return fields(data, func(number protowire.Number, attributes []byte) error {
		if number != checkAttributes {
			return nil
		}
		return fields(attributes, func(number protowire.Number, v []byte) error {
			switch number {
			case contextRequest:
				return fields(v, func(number protowire.Number, http []byte) error {
					if number != requestHTTP {
						return nil
					}
					return fields(http, q.headers)
				})
			case contextExtensions:
				e, err := readEntry(v)
				q.extensions = append(q.extensions, parameter{string(e.key), string(e.value)})
				return err
			}
			return nil
		})
	})
}

// headers takes one field of the HTTP request.
func (q *question) headers(number protowire.Number, v []byte) error {
	switch number {
	case httpHeaders:
		e, err := readEntry(v)
		if string(e.key) == authorizationField { // keys of the map are in lower case
			q.authorization = append(q.authorization, string(e.value))
		}
		return err
	case httpHeaderMap:
		return fields(v, func(number protowire.Number, v []byte) error {
			if number != headerMapHeaders {
				return nil
			}
			e, err := readEntry(v)
			if !strings.EqualFold(string(e.key), authorizationField) {
				return err
			}
			if len(e.value) > 0 || len(e.raw) == 0 {
				q.authorization = append(q.authorization, string(e.value))
			}
			if len(e.raw) > 0 {
				q.authorization = append(q.authorization, string(e.raw))
			}
			return err
		})
	}
	return nil
}

// entry is an entry of a map, or a HeaderValue, which has raw bytes beside.
type entry struct{ key, value, raw []byte }

func readEntry(b []byte) (e entry, err error) {
	err = fields(b, func(number protowire.Number, v []byte) error {
		switch number {
		case entryKey:
			e.key = v
		case entryValue:
			e.value = v
		case headerValueRaw:
			e.raw = v
		}
		return nil
	})
	return e, err
}

// fields gives each length-delimited field of a message; the others are passed over.
func fields(b []byte, each func(number protowire.Number, v []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var v []byte
		if kind == protowire.BytesType {
			v, n = protowire.ConsumeBytes(b)
		} else {
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if kind == protowire.BytesType {
			if err := each(number, v); err != nil {
				return err
			}
		}
	}
	return nil
}
