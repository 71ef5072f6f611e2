package hostile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/emmansun/gmsm/smx509"
)

// Alert is one that the other side sent.
type Alert struct{ Level, Code byte }

func (a *Alert) Error() string { return fmt.Sprintf("alert %d, level %d", a.Code, a.Level) }

// Peer is what both sides have. Its hooks are set before the first step; none
// of it may be used by two goroutines at once.
type Peer struct {
	Conn  net.Conn
	Suite uint16 // agreed
	Own   *Identity
	// Chain is what the Certificate message holds; nil sends Own.List().
	Chain [][]byte

	// RecordVersion is in the header of what is sent. 0 is Version.
	RecordVersion uint16
	// Edit may replace a handshake message, header included, by any number.
	Edit func(kind byte, msg []byte) [][]byte
	// Frame may cut a handshake message, or what Join collects, into records.
	Frame func(p []byte) [][]byte
	// Join keeps handshake messages back until CCS or the next read, to send
	// them in one record.
	Join bool
	// Wire may change a record as it leaves; the transcript does not know.
	Wire func(raw []byte) []byte
	// Nonce makes the explicit nonces of GCM. Default: the sequence number.
	Nonce func(seq uint64) []byte
	// Pad is how many blocks of padding more than needed CBC adds.
	Pad int
	// CCSBody is the body of ChangeCipherSpec. Default {1}.
	CCSBody []byte

	PeerCerts []*smx509.Certificate // as received
	Resumed   bool
	SessionID []byte // of the session, from the ServerHello
	Ticket    []byte // that the server gave
	Master    []byte
	Warnings  []Alert // received

	clientRandom, serverRandom []byte
	in, out                    *half
	next                       [2]*half // client's and server's, once derived
	sent                       []byte   // held back by Join
	hash                       []byte   // the transcript
	got                        []byte   // handshake bytes received and not yet read
	writeErr                   error
}

// Send writes a record through the cipher in force. What it fails with is told
// by the next read: a peer that refuses closes while we write.
func (p *Peer) Send(typ byte, payload []byte) {
	v := p.RecordVersion
	if v == 0 {
		v = Version
	}
	f := p.out.seal(typ, v, payload)
	p.Write(RawRecord(typ, v, len(f), f))
}

// Write sends bytes as they are.
func (p *Peer) Write(raw []byte) {
	if p.Wire != nil {
		raw = p.Wire(raw)
	}
	if _, err := p.Conn.Write(raw); err != nil && p.writeErr == nil {
		p.writeErr = err
	}
}

// Say sends a handshake message.
func (p *Peer) Say(kind byte, body []byte) {
	msgs := [][]byte{Message(kind, body)}
	if p.Edit != nil {
		msgs = p.Edit(kind, msgs[0])
	}
	for _, m := range msgs {
		if kind != MsgHelloRequest {
			p.hash = append(p.hash, m...)
		}
		if p.Join {
			p.sent = append(p.sent, m...)
			continue
		}
		p.frame(m)
	}
}

func (p *Peer) frame(b []byte) {
	parts := [][]byte{b}
	if p.Frame != nil {
		parts = p.Frame(b)
	}
	for _, part := range parts {
		p.Send(TypeHandshake, part)
	}
}

// Flush sends what Join keeps.
func (p *Peer) Flush() {
	if len(p.sent) > 0 {
		b := p.sent
		p.sent = nil
		p.frame(b)
	}
}

// Bytes are the pieces of b of at most n bytes, for Frame.
func Bytes(n int) func([]byte) [][]byte {
	return func(b []byte) (out [][]byte) {
		for len(b) > n {
			out, b = append(out, b[:n]), b[n:]
		}
		return append(out, b)
	}
}

// derive computes both directions' keys from the master secret.
func (p *Peer) derive() {
	c, s := halves(p.Suite, p.Master, p.clientRandom, p.serverRandom)
	p.next = [2]*half{c, s}
}

func (p *Peer) master(premaster []byte) {
	p.Master = prf(premaster, "master secret", cat(p.clientRandom, p.serverRandom), 48)
	p.derive()
}

// changeCipher sends ChangeCipherSpec and takes the keys into use, if there are
// any: a spoiled handshake may come here without.
func (p *Peer) changeCipher(side int) {
	p.Flush()
	body := p.CCSBody
	if body == nil {
		body = []byte{1}
	}
	p.Send(TypeCCS, body)
	if h := p.next[side]; h != nil {
		h.nonce, h.pad = p.Nonce, p.Pad
		p.out = h
	}
}

func (p *Peer) finishedBody(label string) []byte {
	return prf(p.Master, label, digest(p.hash), 12)
}

// SpoilCBC changes content, MAC and padding of the next records before they are
// encrypted.
func (p *Peer) SpoilCBC(edit func([]byte) []byte) { p.out.edit = edit }

// record reads one record and opens it.
func (p *Peer) record() (byte, []byte, error) {
	p.Flush()
	head := make([]byte, 5)
	if _, err := io.ReadFull(p.Conn, head); err != nil {
		return 0, nil, err
	}
	v, n := uint16(head[1])<<8|uint16(head[2]), int(head[3])<<8|int(head[4])
	if v != Version {
		return 0, nil, fmt.Errorf("record of version %04x", v)
	}
	if n > 1<<14+2048 {
		return 0, nil, fmt.Errorf("record of %d bytes", n)
	}
	f := make([]byte, n)
	if _, err := io.ReadFull(p.Conn, f); err != nil {
		return 0, nil, err
	}
	b, err := p.in.open(head[0], v, f)
	return head[0], b, err
}

// Read returns the next record that is no warning. A fatal alert and
// close_notify are an *Alert.
func (p *Peer) Read() (byte, []byte, error) {
	for {
		typ, b, err := p.record()
		if err != nil || typ != TypeAlert {
			return typ, b, err
		}
		if len(b) != 2 {
			return 0, nil, fmt.Errorf("an alert of %d bytes", len(b))
		}
		a := Alert{b[0], b[1]}
		if a.Level == 1 && a.Code != 0 {
			p.Warnings = append(p.Warnings, a)
			continue
		}
		return 0, nil, &a
	}
}

// hear returns the next handshake message, which is not yet in the transcript.
func (p *Peer) hear() (kind byte, body, raw []byte, err error) {
	for {
		if len(p.got) >= 4 {
			n := 4 + (int(p.got[1])<<16 | int(p.got[2])<<8 | int(p.got[3]))
			if len(p.got) >= n {
				raw, p.got = p.got[:n], p.got[n:]
				return raw[0], raw[4:], raw, nil
			}
		}
		typ, b, err := p.Read()
		if err != nil {
			return 0, nil, nil, err
		}
		if typ != TypeHandshake {
			return 0, nil, nil, fmt.Errorf("record of type %d, want a handshake message", typ)
		}
		p.got = append(p.got, b...)
	}
}

// expect reads a message of one kind into the transcript.
func (p *Peer) expect(kind byte) ([]byte, error) {
	k, body, raw, err := p.hear()
	if err != nil {
		return nil, err
	}
	if k != kind {
		return nil, fmt.Errorf("handshake message %d, want %d", k, kind)
	}
	p.hash = append(p.hash, raw...)
	return body, nil
}

// hearFinished reads ChangeCipherSpec and the other side's Finished.
func (p *Peer) hearFinished(side int, label string) error {
	typ, b, err := p.Read()
	if err != nil {
		return err
	}
	if typ != TypeCCS || !bytes.Equal(b, []byte{1}) || len(p.got) > 0 {
		return fmt.Errorf("record of type %d, want ChangeCipherSpec", typ)
	}
	p.in = p.next[side]
	want := p.finishedBody(label)
	body, err := p.expect(MsgFinished)
	if err != nil {
		return err
	}
	if !bytes.Equal(body, want) {
		return errFinished
	}
	return nil
}

func (p *Peer) takeCertificates(body []byte) error {
	list, err := parseCertificates(body)
	if err != nil {
		return err
	}
	for _, der := range list {
		c, err := smx509.ParseCertificate(der)
		if err != nil {
			return err
		}
		p.PeerCerts = append(p.PeerCerts, c)
	}
	return nil
}

func (p *Peer) chain() [][]byte {
	if p.Chain != nil || p.Own == nil {
		return p.Chain
	}
	return p.Own.List()
}

// End reads to the end of the connection and returns the alert that it ended
// with; an error other than io.EOF or a reset is a connection that stays open.
func (p *Peer) End() (*Alert, error) {
	for {
		_, _, err := p.Read()
		var a *Alert
		switch {
		case err == nil:
		case errors.As(err, &a):
			// The alert is the last that is said.
			if _, _, err := p.record(); err == nil {
				return a, errors.New("a record after the alert")
			} else if isTimeout(err) {
				return a, errors.New("the connection stays open after the alert")
			}
			return a, nil
		case isTimeout(err):
			return nil, err
		default:
			return nil, nil
		}
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// Echo sends data and reads as much back.
func (p *Peer) Echo(data []byte) error {
	p.Send(TypeData, data)
	var back []byte
	for len(back) < len(data) {
		typ, b, err := p.Read()
		if err != nil {
			return err
		}
		if typ != TypeData {
			return fmt.Errorf("record of type %d, want data", typ)
		}
		back = append(back, b...)
	}
	if !bytes.Equal(back, data) {
		return errors.New("the echo differs")
	}
	return nil
}

// CloseWrite ends our direction of the transport.
func (p *Peer) CloseWrite() {
	p.Flush()
	if c, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
}

// Deadline bounds every read and write that follows.
func (p *Peer) Deadline(d time.Duration) { p.Conn.SetDeadline(time.Now().Add(d)) }
