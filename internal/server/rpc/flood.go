package rpc

import (
	"errors"
	"net"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/credentials"
)

// How many frames that ask for nothing a connection may send: so many at once, and so many in each second after that. It is
// what a proxy sends that takes all its streams back twenty times a second, since its callers' patience ends before a slow
// service answers; to close its connection would end what the others wait for.
const (
	idleFrames          = 2 * idleFramesPerSecond
	idleFramesPerSecond = 20 * maxStreams
)

var errFlood = errors.New("rpc: the connection is a flood of frames that ask for nothing")

// metered wraps the connections of some credentials, above TLS, in a meter. grpc-go bounds what a flood of resets, settings,
// priorities and continuations holds in memory, and closes for pings, but lets all others go on for as long as they
// like.
type metered struct {
	credentials.TransportCredentials
}

// ServerHandshake implements credentials.TransportCredentials.
func (m metered) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := m.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	return onReady(&meter{Conn: conn, preface: len(http2.ClientPreface), tokens: idleFrames}), info, nil
}

// Clone implements credentials.TransportCredentials.
func (m metered) Clone() credentials.TransportCredentials {
	return metered{m.TransportCredentials.Clone()}
}

// meter follows the frame headers of what is read (RFC 9113 §4.1) and ends the connection when those that ask for
// nothing are too many. One goroutine reads a connection, so nothing here is locked.
type meter struct {
	net.Conn
	preface int // bytes of it still to come
	header  [9]byte
	have    int // bytes of header that have come
	payload int // bytes of the frame's payload still to come
	tokens  float64
	last    time.Time // when tokens were last counted
}

// Read implements net.Conn.
func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	if !m.follow(p[:n]) {
		_ = m.Close()
		return 0, errFlood
	}
	return n, err
}

// follow takes in what was read, and reports whether the connection may go on.
func (m *meter) follow(p []byte) bool {
	for len(p) > 0 {
		switch {
		case m.preface > 0:
			n := min(m.preface, len(p))
			m.preface -= n
			p = p[n:]
		case m.payload > 0:
			n := min(m.payload, len(p))
			m.payload -= n
			p = p[n:]
		default:
			n := copy(m.header[m.have:], p)
			m.have += n
			p = p[n:]
			if m.have < len(m.header) {
				continue
			}
			m.have, m.payload = 0, int(m.header[0])<<16|int(m.header[1])<<8|int(m.header[2])
			if idle(http2.FrameType(m.header[3]), http2.Flags(m.header[4]), m.payload) && !m.spend(time.Now()) {
				return false
			}
		}
	}
	return true
}

// idle reports whether a frame asks for nothing. Pings are grpc-go's own to count, since it knows which of them measure
// the line; windows are opened by every call.
func idle(kind http2.FrameType, flags http2.Flags, payload int) bool {
	switch kind {
	case http2.FrameData:
		return payload == 0 && !flags.Has(http2.FlagDataEndStream)
	case http2.FrameHeaders, http2.FramePing, http2.FrameWindowUpdate, http2.FrameGoAway:
		return false
	case http2.FrameSettings:
		return !flags.Has(http2.FlagSettingsAck)
	default: // resets, priorities, continuations, and types that nobody knows
		return true
	}
}

func (m *meter) spend(now time.Time) bool {
	if !m.last.IsZero() {
		m.tokens = min(idleFrames, m.tokens+now.Sub(m.last).Seconds()*idleFramesPerSecond)
	}
	m.last = now
	m.tokens--
	return m.tokens >= 0
}
