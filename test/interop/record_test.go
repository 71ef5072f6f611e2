package interop

import (
	"encoding/binary"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// segment is what one side sent in one write, as the client saw it.
type segment struct {
	fromClient bool
	data       []byte
}

// recorder is the client's transport, and remembers what passes.
type recorder struct {
	net.Conn
	mu   sync.Mutex
	said []segment // guarded by mu
}

func (r *recorder) note(fromClient bool, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, segment{fromClient, append([]byte(nil), b...)})
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	if n > 0 {
		r.note(false, b[:n])
	}
	return n, err
}

func (r *recorder) Write(b []byte) (int, error) {
	n, err := r.Conn.Write(b)
	if n > 0 {
		r.note(true, b[:n])
	}
	return n, err
}

// conversation runs a handshake and a small exchange over the loopback and
// returns every byte of it.
func conversation(t *testing.T, server, client *tlcp.Config) []segment {
	t.Helper()
	a, b := transports(t, "tcp4")
	r := &recorder{Conn: b}
	s, c := tlcp.Server(a, server), tlcp.Client(r, client)
	echo(t, s, c)
	c.Close()
	s.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.said
}

// handshakeMessages returns the messages up to the first ChangeCipherSpec of
// each side, in the order of the transcript. Ours travel one to a record.
func handshakeMessages(t *testing.T, said []segment) (all [][]byte) {
	t.Helper()
	var pending [2][]byte
	var done [2]bool
	for _, s := range said {
		side := 0
		if s.fromClient {
			side = 1
		}
		p := append(pending[side], s.data...)
		for len(p) >= 5 && len(p) >= 5+int(binary.BigEndian.Uint16(p[3:])) {
			n := 5 + int(binary.BigEndian.Uint16(p[3:]))
			if p[0] == 20 {
				done[side] = true
			}
			if p[0] == 22 && !done[side] {
				all = append(all, p[5:n])
			}
			p = p[n:]
		}
		pending[side] = p
	}
	if len(all) < 6 {
		t.Fatalf("found %d handshake messages", len(all))
	}
	return all
}

// writePcap writes the conversation as IPv4 packets between two addresses, for
// programs that read captures. The server's port is 443.
func writePcap(t *testing.T, file string, said []segment) {
	t.Helper()
	const linktypeRaw = 101
	out := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	out = binary.LittleEndian.AppendUint16(out, 2)
	out = binary.LittleEndian.AppendUint16(out, 4)
	out = append(out, make([]byte, 8)...)
	out = binary.LittleEndian.AppendUint32(out, 1<<18)
	out = binary.LittleEndian.AppendUint32(out, linktypeRaw)
	at := time.Now()
	seq := [2]uint32{1000, 2000} // of server and client
	packet := func(fromClient bool, flags byte, payload []byte) {
		src, dst, me := []byte{192, 0, 2, 1}, []byte{192, 0, 2, 2}, 0
		sport, dport := uint16(443), uint16(50000)
		if fromClient {
			src, dst, sport, dport, me = dst, src, dport, sport, 1
		}
		p := []byte{0x45, 0}
		p = binary.BigEndian.AppendUint16(p, uint16(40+len(payload)))
		p = append(p, 0, 0, 0x40, 0, 64, 6, 0, 0)
		p = append(append(p, src...), dst...)
		p = binary.BigEndian.AppendUint16(p, sport)
		p = binary.BigEndian.AppendUint16(p, dport)
		p = binary.BigEndian.AppendUint32(p, seq[me])
		p = binary.BigEndian.AppendUint32(p, seq[1-me])
		p = append(p, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0)
		p = append(p, payload...)
		seq[me] += uint32(len(payload))
		if flags&0x02 != 0 {
			seq[me]++
		}
		at = at.Add(time.Millisecond)
		out = binary.LittleEndian.AppendUint32(out, uint32(at.Unix()))
		out = binary.LittleEndian.AppendUint32(out, uint32(at.Nanosecond()/1000))
		out = binary.LittleEndian.AppendUint32(out, uint32(len(p)))
		out = binary.LittleEndian.AppendUint32(out, uint32(len(p)))
		out = append(out, p...)
	}
	packet(true, 0x02, nil)
	packet(false, 0x12, nil)
	packet(true, 0x10, nil)
	for _, s := range said {
		for data := s.data; len(data) > 0; {
			n := min(len(data), 1400)
			packet(s.fromClient, 0x18, data[:n])
			data = data[n:]
		}
	}
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
}
