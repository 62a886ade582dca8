package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// codec is the only JSON of this door: proto field names, nothing unpopulated; and on the way in exactly one object, every
// member known, none twice, valid UTF-8, nothing before or behind it.
type codec struct {
	out protojson.MarshalOptions
	in  protojson.UnmarshalOptions
}

var _ runtime.Marshaler = (*codec)(nil)

func newCodec() *codec {
	return &codec{out: protojson.MarshalOptions{UseProtoNames: true}}
}

func (c *codec) Marshal(v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("rest: %T is not a message", v)
	}
	return c.out.Marshal(m)
}

func (c *codec) Unmarshal(data []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("rest: %T is not a message", v)
	}
	return c.in.Unmarshal(data, m)
}

func (c *codec) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		b, ok := r.(*body)
		if !ok {
			return errRefused
		}
		m, ok := v.(proto.Message)
		if !ok {
			return errRefused
		}
		if err := c.in.Unmarshal(b.data, m); err != nil {
			b.in.refusal = refusalOf(err)
			return errRefused
		}
		if name, right := misspelt(b.data, m.ProtoReflect().Descriptor().Fields()); name != "" {
			b.in.refusal = refusal{name, "there is no such field; it is spelled " + right}
			return errRefused
		}
		return nil
	})
}

func (c *codec) NewEncoder(w io.Writer) runtime.Encoder {
	return runtime.EncoderFunc(func(v any) error {
		data, err := c.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
}

func (c *codec) ContentType(any) string { return "application/json" }

// misspelt finds the first member that is named as protojson would name it (grantType) and not as the proto does
// (grant_type): protojson takes both. data is an object that it has taken, so every string with a colon behind it is a
// member's name; and one of a flat message, as the table of routes makes sure, so every name is one of fields.
func misspelt(data []byte, fields protoreflect.FieldDescriptors) (name, right string) {
	for {
		open := bytes.IndexByte(data, '"')
		if open < 0 {
			return "", ""
		}
		text := data[open:]
		end := closing(text)
		text, data = text[:end], text[end:]
		if behind := bytes.TrimLeft(data, " \t\r\n"); len(behind) == 0 || behind[0] != ':' {
			continue // a value
		}
		name = string(text[1 : len(text)-1])
		if strings.IndexByte(name, '\\') >= 0 && json.Unmarshal(text, &name) != nil {
			return name, "otherwise" // not after protojson took it
		}
		if f := fields.ByJSONName(name); f != nil && f.TextName() != name {
			return name, f.TextName()
		}
	}
}

// closing gives the length of the JSON string that text begins with, quotes included.
func closing(text []byte) int {
	quote := bytes.IndexByte(text[1:], '"')
	if quote >= 0 && bytes.IndexByte(text[1:1+quote], '\\') < 0 {
		return quote + 2 // a token or a name: nothing is escaped
	}
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '"':
			return i + 1
		case '\\':
			i++ // and what it escapes
		}
	}
	return len(text) // not after protojson took it
}

// errRefused tells the gateway to stop; what was wrong is in the request's inbound.
var errRefused = errors.New("the body is not what this method takes")

// body is a request's body, read whole before the gateway sees it.
type body struct {
	data []byte
	in   *inbound
}

// Read has nothing: the decoder takes the data whole.
func (b *body) Read([]byte) (int, error) { return 0, io.EOF }

// Close does nothing; the server closes the connection's own body.
func (b *body) Close() error { return nil }

// refusal says what was wrong with a body, without quoting any value of it.
type refusal struct {
	field       string
	description string
}

var (
	badName  = regexp.MustCompile(`(unknown|duplicate) field "([A-Za-z_][A-Za-z0-9_]{0,63})"`)
	badValue = regexp.MustCompile(`invalid value for [a-z0-9]+ field ([A-Za-z_][A-Za-z0-9_]{0,63}):`)
)

// refusalOf turns a decoder's error into words that may be sent. The error's own text quotes the input, which may be a
// password, so only the name of a member is taken from it.
func refusalOf(err error) refusal {
	text := err.Error()
	if m := badName.FindStringSubmatch(text); m != nil {
		if m[1] == "unknown" {
			return refusal{m[2], "there is no such field"}
		}
		return refusal{m[2], "the field is there twice"}
	}
	if m := badValue.FindStringSubmatch(text); m != nil {
		return refusal{m[1], "the value is not of this field's type"}
	}
	return refusal{"", "the body is not one JSON object of this method"}
}
