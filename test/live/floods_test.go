package live

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/authsvc/authsvc/test/soak"
)

const introspectPath = "/authsvc.v1.AuthService/Introspect"

// flooder speaks HTTP/2 frame by frame, as no client library would.
type flooder struct {
	net.Conn
	*http2.Framer
	closed   chan error    // why the connection ended, as the reader saw it
	refused  atomic.Int64  // streams that the server refused
	pongs    chan struct{} // answers to pings, as far as there is room
	goneAway atomic.Bool
	ended    atomic.Int64 // streams that the server ended with an error or an answer
	status   chan string  // grpc-status of calls that were answered
	block    bytes.Buffer
	hpack    *hpack.Encoder
	stream   uint32
}

// flood opens a connection and says the preface. A reading one takes whatever comes, so that the server never waits for us.
func flood(t *testing.T, addr string, secure *tls.Config, reading bool) *flooder {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if secure != nil {
		over := tls.Client(conn, secure)
		if err := over.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		conn = over
	}
	f := &flooder{Conn: conn, closed: make(chan error, 1), pongs: make(chan struct{}, 1), status: make(chan string, 1000), stream: 1}
	f.hpack = hpack.NewEncoder(&f.block)
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f.Framer = http2.NewFramer(conn, conn)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if reading {
		go f.read()
	}
	return f
}

func (f *flooder) read() {
	reader := http2.NewFramer(io.Discard, f.Conn)
	reader.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		frame, err := reader.ReadFrame()
		if err != nil {
			f.ended.Add(1)
			f.closed <- err
			return
		}
		switch frame := frame.(type) {
		case *http2.PingFrame:
			select {
			case f.pongs <- struct{}{}:
			default:
			}
		case *http2.GoAwayFrame:
			f.goneAway.Store(true)
		case *http2.RSTStreamFrame:
			f.ended.Add(1)
			if frame.ErrCode == http2.ErrCodeRefusedStream {
				f.refused.Add(1)
			}
		case *http2.MetaHeadersFrame:
			for _, h := range frame.Fields {
				if h.Name == "grpc-status" {
					f.ended.Add(1)
					f.status <- h.Value
				}
			}
		}
	}
}

// wantAnswer calls a method and waits for whatever grpc-status it has.
func (f *flooder) wantAnswer(t *testing.T) {
	t.Helper()
	id, err := f.begin(t, introspectPath)
	if err := errors.Join(err, f.WriteData(id, true, make([]byte, 5))); err != nil {
		t.Fatal(err)
	}
	select {
	case <-f.status:
	case err := <-f.closed:
		t.Errorf("the connection ended: %v", err)
	case <-time.After(time.Minute):
		t.Error("there is no answer")
	}
}

// headers gives the block of a call, with more fields behind it.
func (f *flooder) headers(t *testing.T, path string, more ...string) []byte {
	t.Helper()
	f.block.Reset()
	kind := "application/grpc"
	if strings.HasPrefix(path, "/v1/") {
		kind = "application/json"
	}
	fields := append([]string{":method", "POST", ":scheme", "http", ":path", path, ":authority", "x", "te", "trailers", "content-type", kind}, more...)
	for i := 0; i < len(fields); i += 2 {
		if err := f.hpack.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			t.Fatal(err)
		}
	}
	return bytes.Clone(f.block.Bytes())
}

// begin opens the next stream.
func (f *flooder) begin(t *testing.T, path string) (uint32, error) {
	id := f.stream
	f.stream += 2
	return id, f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.headers(t, path), EndHeaders: true})
}

// wantClosed fails unless the server ends the connection; a minute is patience, not a measurement.
func (f *flooder) wantClosed(t *testing.T) {
	t.Helper()
	select {
	case err := <-f.closed:
		f.closed <- err
	case <-time.After(time.Minute):
		t.Error("the connection is still open")
	}
}

// round is one step of a flood.
type round func(t *testing.T, f *flooder) error

// reset opens streams and resets them.
func reset(path string) round {
	return func(t *testing.T, f *flooder) error {
		id, err := f.begin(t, path)
		return errors.Join(err, f.WriteRSTStream(id, http2.ErrCodeCancel))
	}
}

// paced resets streams no faster than the server follows.
func paced(path string) round {
	return func(t *testing.T, f *flooder) error {
		if err := reset(path)(t, f); err != nil || f.stream%64 != 1 {
			return err
		}
		if err := ping(t, f); err != nil {
			return err
		}
		select {
		case <-f.pongs:
			return nil
		case err := <-f.closed:
			f.closed <- err
			return err
		}
	}
}

// endless opens a header list that never ends, and goes on with it.
func endless(value string) round {
	return func(t *testing.T, f *flooder) error {
		if f.stream == 1 {
			f.stream = 3
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: f.headers(t, introspectPath)})
		}
		f.block.Reset()
		if value != "" {
			if err := f.hpack.WriteField(hpack.HeaderField{Name: "x-more", Value: value, Sensitive: true}); err != nil {
				t.Fatal(err)
			}
		}
		return f.WriteContinuation(1, false, f.block.Bytes())
	}
}

func ping(_ *testing.T, f *flooder) error { return f.WritePing(false, [8]byte{1}) }

func settings(_ *testing.T, f *flooder) error {
	return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 65535})
}

func priority(_ *testing.T, f *flooder) error {
	return f.WritePriority(1, http2.PriorityParam{StreamDep: 3, Weight: 1})
}

// nothing sends data frames without data.
func nothing(t *testing.T, f *flooder) error {
	if f.stream == 1 {
		_, err := f.begin(t, introspectPath)
		return err
	}
	return f.WriteData(1, false, nil)
}

// TestG11FloodsAreClosed floods both doors and asks three things of the server: the flooding connection ends, memory stays
// flat, and an honest client is served all the while. The twin is that client, and the connection at the end.
func TestG11FloodsAreClosed(t *testing.T) {
	t.Parallel()
	dir, d := stopped(t)
	s, conf := secure(t, dir, d)
	honest := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}}
	t.Cleanup(honest.CloseIdleConnections)
	in := s.say(t, honest, "/v1/auth/login", s.credentials(s.Username, s.Password))
	serves := func(t *testing.T) {
		t.Helper()
		a := s.say(t, honest, "/v1/auth/introspect", map[string]any{"token": in.text("access_token")}, "Authorization", s.basic())
		if a.code != http.StatusOK || a.json["active"] != true {
			t.Errorf("an honest call beside the flood answered %d %s", a.code, a.raw)
		}
	}
	grpcDoor, restDoor := s.GRPC, strings.TrimPrefix(s.HTTP, "https://")
	for _, tt := range []struct {
		name, addr string
		send       round
		closes     bool // net/http serves some frames for as long as one reads the answers; they cost both sides the same
	}{
		{"G11 rapid reset, gRPC", grpcDoor, reset(introspectPath), true},
		{"G11 continuations without end, gRPC", grpcDoor, endless(strings.Repeat("a", 200)), true},
		{"G11 empty continuations, gRPC", grpcDoor, endless(""), true},
		{"G11 pings, gRPC", grpcDoor, ping, true},
		{"G11 settings, gRPC", grpcDoor, settings, true},
		{"G11 priorities, gRPC", grpcDoor, priority, true},
		{"G11 empty data, gRPC", grpcDoor, nothing, true},
		{"G11 rapid reset, REST", restDoor, reset("/v1/auth/login"), true},
		{"G11 resets at the server's pace, REST", restDoor, paced("/v1/auth/login"), true},
		{"G11 continuations without end, REST", restDoor, endless(strings.Repeat("a", 200)), true},
		{"G11 empty continuations, REST", restDoor, endless(""), false},
		{"G11 pings, REST", restDoor, ping, false},
		{"G11 settings, REST", restDoor, settings, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := s.memory(t)
			f := flood(t, tt.addr, conf, true)
			most := soak.Count(20_000, 200_000)
			if tt.closes {
				most *= 100 // a machine that is slow now and then is no flood for as long
			}
			for i := range most {
				if err := tt.send(t, f); err != nil {
					break // closed
				}
				if i%5000 == 0 {
					serves(t)
				}
			}
			if tt.closes {
				f.wantClosed(t)
			}
			serves(t)
			// What a flood of 20,000 could leave at 4 KiB for each is more than what the collector lets lie about.
			if after := s.memory(t); after > before+64 {
				t.Errorf("memory grew from %d to %d MiB", before, after)
			}
		})
	}
	t.Run("the twin: a hundred of each on one connection that is then served", func(t *testing.T) {
		f := flood(t, grpcDoor, conf, true)
		for range 100 {
			if err := errors.Join(reset(introspectPath)(t, f), settings(t, f), priority(t, f)); err != nil {
				t.Fatal(err)
			}
		}
		f.wantAnswer(t)
	})
}

// TestG11AnswersThatNobodyReadsAreNotKept sends pings and settings and reads none of the answers: the server must stop
// reading or close, and keep nothing.
func TestG11AnswersThatNobodyReadsAreNotKept(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for floods to stall")
	}
	dir, d := stopped(t)
	s, conf := secure(t, dir, d)
	before := s.memory(t)
	for _, addr := range []string{s.GRPC, strings.TrimPrefix(s.HTTP, "https://")} {
		for _, send := range []round{ping, settings} {
			f := flood(t, addr, conf, false)
			// A server that has stopped reading blocks us: that is as good as closed, and the deadline shows it.
			if err := f.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			for range 2_000_000 {
				if err := send(t, f); err != nil {
					break
				}
			}
		}
	}
	if after := s.memory(t); after > before+64 {
		t.Errorf("memory grew from %d to %d MiB", before, after)
	}
	honest := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}}
	t.Cleanup(honest.CloseIdleConnections)
	if a := s.say(t, honest, "/v1/auth/login", s.credentials(s.Username, s.Password)); a.code != http.StatusOK {
		t.Errorf("the twin, an honest client, got %d %s", a.code, a.raw)
	}
}
