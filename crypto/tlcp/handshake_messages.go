package tlcp

import (
	"slices"

	"golang.org/x/crypto/cryptobyte"
)

// Each handshake message has marshal, which returns it whole with its header
// of four bytes, and unmarshal, which takes the body behind the header, keeps
// slices of it and reports whether it is well-formed to the last byte.

// message returns a handshake message with the body that f builds. It panics
// when a field is too long for its length prefix; callers bound what they put.
func message(kind uint8, f func(b *cryptobyte.Builder)) []byte {
	b := cryptobyte.NewBuilder(make([]byte, 0, 128))
	b.AddUint8(kind)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { f(b) })
	return b.BytesOrPanic()
}

type child = cryptobyte.BuilderContinuation

func bytesOf(v []byte) child { return func(b *cryptobyte.Builder) { b.AddBytes(v) } }

// clientHello is §6.4.5.2.1.
type clientHello struct {
	version      uint16
	random       []byte // 32 bytes
	sessionID    []byte // 0 to 32 bytes
	suites       []uint16
	compressions []byte

	serverName   string
	alpn         []string
	offersTicket bool
	ticket       []byte // empty: none held yet
	noExtensions bool   // sent without any, not even an empty list
}

func (m *clientHello) marshal() []byte {
	return message(typeClientHello, func(b *cryptobyte.Builder) {
		b.AddUint16(m.version)
		b.AddBytes(m.random)
		b.AddUint8LengthPrefixed(bytesOf(m.sessionID))
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, s := range m.suites {
				b.AddUint16(s)
			}
		})
		b.AddUint8LengthPrefixed(bytesOf(m.compressions))
		if !m.noExtensions {
			b.AddUint16LengthPrefixed(m.addExtensions)
		}
	})
}

func (m *clientHello) addExtensions(b *cryptobyte.Builder) {
	if m.serverName != "" {
		b.AddUint16(extServerName)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
				b.AddUint8(0) // host_name
				b.AddUint16LengthPrefixed(bytesOf([]byte(m.serverName)))
			})
		})
	}
	b.AddUint16(extSupportedGroups)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(curveSM2) })
	})
	b.AddUint16(extSignatureAlgorithms)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint16(sigSM2)
			b.AddUint16(sigSM2v8)
		})
	})
	if len(m.alpn) > 0 {
		addALPN(b, m.alpn)
	}
	if m.offersTicket {
		b.AddUint16(extSessionTicket)
		b.AddUint16LengthPrefixed(bytesOf(m.ticket))
	}
}

func addALPN(b *cryptobyte.Builder, protos []string) {
	b.AddUint16(extALPN)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, p := range protos {
				b.AddUint8LengthPrefixed(bytesOf([]byte(p)))
			}
		})
	})
}

func (m *clientHello) unmarshal(body []byte) bool {
	*m = clientHello{}
	s := cryptobyte.String(body)
	var id, suiteList, compressions cryptobyte.String
	if !s.ReadUint16(&m.version) || !s.ReadBytes(&m.random, 32) ||
		!s.ReadUint8LengthPrefixed(&id) || len(id) > 32 ||
		!s.ReadUint16LengthPrefixed(&suiteList) || len(suiteList) == 0 || len(suiteList)%2 != 0 ||
		!s.ReadUint8LengthPrefixed(&compressions) || len(compressions) == 0 {
		return false
	}
	m.sessionID, m.compressions = id, compressions
	m.suites = make([]uint16, len(suiteList)/2)
	for i := range m.suites {
		suiteList.ReadUint16(&m.suites[i])
	}
	if s.Empty() {
		m.noExtensions = true
		return true
	}
	return eachExtension(s, func(kind uint16, data cryptobyte.String) bool {
		switch kind {
		case extServerName:
			return m.readServerName(data)
		case extALPN:
			m.alpn = readALPN(&data)
			return m.alpn != nil && data.Empty()
		case extSessionTicket:
			m.offersTicket, m.ticket = true, data
		}
		return true // what we do not know is ignored
	})
}

// maxServerName is more than any host name has (RFC 1035 §2.3.4). A connection
// keeps the name, and logs hold it.
const maxServerName = 255

func (m *clientHello) readServerName(data cryptobyte.String) bool {
	var list cryptobyte.String
	if !data.ReadUint16LengthPrefixed(&list) || list.Empty() || !data.Empty() {
		return false
	}
	for !list.Empty() {
		var kind uint8
		var name cryptobyte.String
		if !list.ReadUint8(&kind) || !list.ReadUint16LengthPrefixed(&name) || len(name) == 0 || len(name) > maxServerName {
			return false
		}
		if kind != 0 {
			continue
		}
		if m.serverName != "" || name[len(name)-1] == '.' || slices.Contains(name, 0) {
			return false // two names, or not as RFC 6066 §3 has it
		}
		m.serverName = string(name)
	}
	return true
}

// readALPN reads a list of protocols, nil when it is malformed or empty.
func readALPN(s *cryptobyte.String) []string {
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) {
		return nil
	}
	var out []string
	for !list.Empty() {
		var p cryptobyte.String
		if !list.ReadUint8LengthPrefixed(&p) || len(p) == 0 {
			return nil
		}
		out = append(out, string(p))
	}
	return out
}

// eachExtension calls f with every extension of the list that is all of s. A
// repeated extension is malformed.
func eachExtension(s cryptobyte.String, f func(kind uint16, data cryptobyte.String) bool) bool {
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() {
		return false
	}
	seen := make(map[uint16]bool)
	for !list.Empty() {
		var kind uint16
		var data cryptobyte.String
		if !list.ReadUint16(&kind) || !list.ReadUint16LengthPrefixed(&data) || seen[kind] || !f(kind, data) {
			return false
		}
		seen[kind] = true
	}
	return true
}

// serverHello is §6.4.5.2.2.
type serverHello struct {
	version     uint16
	random      []byte
	sessionID   []byte
	suite       uint16
	compression uint8

	alpn        string
	ackName     bool // server_name, empty: understood only, never sent
	givesTicket bool
	unasked     bool // has an extension that nobody may send unasked, or we do not know
}

func (m *serverHello) marshal() []byte {
	return message(typeServerHello, func(b *cryptobyte.Builder) {
		b.AddUint16(m.version)
		b.AddBytes(m.random)
		b.AddUint8LengthPrefixed(bytesOf(m.sessionID))
		b.AddUint16(m.suite)
		b.AddUint8(m.compression)
		if m.alpn == "" && !m.givesTicket {
			return
		}
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			if m.alpn != "" {
				addALPN(b, []string{m.alpn})
			}
			if m.givesTicket {
				b.AddUint16(extSessionTicket)
				b.AddUint16(0)
			}
		})
	})
}

func (m *serverHello) unmarshal(body []byte) bool {
	*m = serverHello{}
	s := cryptobyte.String(body)
	var id cryptobyte.String
	if !s.ReadUint16(&m.version) || !s.ReadBytes(&m.random, 32) ||
		!s.ReadUint8LengthPrefixed(&id) || len(id) > 32 ||
		!s.ReadUint16(&m.suite) || !s.ReadUint8(&m.compression) {
		return false
	}
	m.sessionID = id
	if s.Empty() {
		return true
	}
	return eachExtension(s, func(kind uint16, data cryptobyte.String) bool {
		switch kind {
		case extServerName:
			m.ackName = true
			return data.Empty()
		case extALPN:
			protos := readALPN(&data)
			if len(protos) != 1 || !data.Empty() {
				return false
			}
			m.alpn = protos[0]
		case extSessionTicket:
			m.givesTicket = true
			return data.Empty()
		case extSupportedGroups, extSignatureAlgorithms:
			// Offered by us; some servers say theirs, which is without effect.
		default:
			m.unasked = true
		}
		return true
	})
}

// certificateMsg is §6.4.5.3: the signing certificate, the encryption
// certificate, intermediates.
type certificateMsg struct {
	certificates [][]byte // DER
}

func (m *certificateMsg) marshal() []byte {
	return message(typeCertificate, func(b *cryptobyte.Builder) {
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, c := range m.certificates {
				b.AddUint24LengthPrefixed(bytesOf(c))
			}
		})
	})
}

func (m *certificateMsg) unmarshal(body []byte) bool {
	*m = certificateMsg{}
	s := cryptobyte.String(body)
	var list cryptobyte.String
	if !s.ReadUint24LengthPrefixed(&list) || !s.Empty() {
		return false
	}
	for !list.Empty() {
		var c cryptobyte.String
		if !list.ReadUint24LengthPrefixed(&c) || len(c) == 0 || len(m.certificates) == maxChain {
			return false
		}
		m.certificates = append(m.certificates, c)
	}
	return true
}

// serverKeyExchange is §6.4.5.4. For ECDHE, params stands before the
// signature; for ECC it is empty and the signature covers the encryption
// certificate.
type serverKeyExchange struct {
	params    []byte
	signature []byte
}

func (m *serverKeyExchange) marshal() []byte {
	return message(typeServerKeyExchange, func(b *cryptobyte.Builder) {
		b.AddBytes(m.params)
		b.AddUint16LengthPrefixed(bytesOf(m.signature))
	})
}

// unmarshal needs to know the kind of key exchange: the message does not say.
func (m *serverKeyExchange) unmarshal(body []byte, ecdhe bool) bool {
	*m = serverKeyExchange{}
	s := cryptobyte.String(body)
	if ecdhe {
		if _, ok := parseECDHEParams(&s); !ok {
			return false
		}
		m.params = body[:len(body)-len(s)]
	}
	var sig cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&sig) || len(sig) == 0 || !s.Empty() {
		return false
	}
	m.signature = sig
	return true
}

const pointLen = 65 // an uncompressed SM2 point

// ecdheParams returns ServerECDHEParams of §6.4.5.4: a named curve and a point.
func ecdheParams(point []byte) []byte {
	out := []byte{3, byte(curveSM2 >> 8), byte(curveSM2 & 0xff), byte(len(point))}
	return append(out, point...)
}

func parseECDHEParams(s *cryptobyte.String) (point []byte, ok bool) {
	var kind uint8
	var curve uint16
	var p cryptobyte.String
	if !s.ReadUint8(&kind) || kind != 3 || !s.ReadUint16(&curve) || curve != curveSM2 ||
		!s.ReadUint8LengthPrefixed(&p) || len(p) != pointLen {
		return nil, false
	}
	return p, true
}

// certificateRequest is §6.4.5.5.
type certificateRequest struct {
	types       []byte
	authorities [][]byte // DER of distinguished names
}

// Certificate types: what peers send and look for.
const (
	certTypeRSASign   = 1
	certTypeECDSASign = 64
)

func (m *certificateRequest) marshal() []byte {
	return message(typeCertificateRequest, func(b *cryptobyte.Builder) {
		b.AddUint8LengthPrefixed(bytesOf(m.types))
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, a := range m.authorities {
				b.AddUint16LengthPrefixed(bytesOf(a))
			}
		})
	})
}

func (m *certificateRequest) unmarshal(body []byte) bool {
	*m = certificateRequest{}
	s := cryptobyte.String(body)
	var types, list cryptobyte.String
	if !s.ReadUint8LengthPrefixed(&types) || len(types) == 0 ||
		!s.ReadUint16LengthPrefixed(&list) || !s.Empty() {
		return false
	}
	m.types = types
	for !list.Empty() {
		var a cryptobyte.String
		if !list.ReadUint16LengthPrefixed(&a) || len(a) == 0 {
			return false
		}
		m.authorities = append(m.authorities, a)
	}
	return true
}

// clientKeyExchange is §6.4.5.8. exchange is the whole body: for ECC a length
// and an SM2 ciphertext, for ECDHE the parameters with or without a length.
type clientKeyExchange struct {
	exchange []byte
}

func (m *clientKeyExchange) marshal() []byte {
	return message(typeClientKeyExchange, bytesOf(m.exchange))
}

func (m *clientKeyExchange) unmarshal(body []byte) bool {
	m.exchange = body
	return len(body) > 0
}

// certificateVerify is §6.4.5.7.
type certificateVerify struct {
	signature []byte
}

func (m *certificateVerify) marshal() []byte {
	return message(typeCertificateVerify, func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(bytesOf(m.signature))
	})
}

func (m *certificateVerify) unmarshal(body []byte) bool {
	s := cryptobyte.String(body)
	var sig cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&sig) || len(sig) == 0 || !s.Empty() {
		return false
	}
	m.signature = sig
	return true
}

// finishedMsg is §6.4.5.9.
type finishedMsg struct {
	verifyData []byte
}

func (m *finishedMsg) marshal() []byte { return message(typeFinished, bytesOf(m.verifyData)) }

func (m *finishedMsg) unmarshal(body []byte) bool {
	m.verifyData = body
	return len(body) == verifyDataLen
}

// newSessionTicket is RFC 5077 §3.3.
type newSessionTicket struct {
	lifetime uint32 // seconds; a hint
	ticket   []byte
}

func (m *newSessionTicket) marshal() []byte {
	return message(typeNewSessionTicket, func(b *cryptobyte.Builder) {
		b.AddUint32(m.lifetime)
		b.AddUint16LengthPrefixed(bytesOf(m.ticket))
	})
}

func (m *newSessionTicket) unmarshal(body []byte) bool {
	s := cryptobyte.String(body)
	var t cryptobyte.String
	if !s.ReadUint32(&m.lifetime) || !s.ReadUint16LengthPrefixed(&t) || !s.Empty() {
		return false
	}
	m.ticket = t
	return true
}
