package tlcp

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/smx509"
)

var update = flag.Bool("update", false, "write the recorded transcripts anew")

// stream is a random source that always gives the same bytes: SM3 of a seed
// and a counter.
type stream struct {
	seed string
	n    uint64
	rest []byte
}

func (s *stream) Read(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		if len(s.rest) == 0 {
			sum := sm3.Sum(binary.BigEndian.AppendUint64([]byte(s.seed), s.n))
			s.rest = sum[:]
			s.n++
		}
		m := copy(b, s.rest)
		b, s.rest = b[m:], s.rest[m:]
	}
	return n, nil
}

// recordedSite makes the same keys and certificates every time.
func recordedSite(t *testing.T) *site {
	t.Helper()
	serial := int64(1000)
	number := func(c *smx509.Certificate) {
		serial++
		c.SerialNumber = big.NewInt(serial)
	}
	root := &authority{t: t, rand: &stream{seed: "authority"}}
	root.key = keyFrom(t, root.rand)
	tmpl := &smx509.Certificate{
		Subject: subjectOf("root"), SerialNumber: big.NewInt(1), KeyUsage: smx509.KeyUsageCertSign,
		BasicConstraintsValid: true, IsCA: true, SubjectKeyId: []byte("root"),
	}
	root.cert = root.issue(tmpl, root.key, nil)
	return &site{root: root, server: root.pair(number), client: root.pair(number)}
}

// tape is a transport that gives what was recorded and keeps what is sent.
type tape struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (p *tape) Read(b []byte) (int, error)       { return p.in.Read(b) }
func (p *tape) Write(b []byte) (int, error)      { return p.out.Write(b) }
func (p *tape) Close() error                     { return nil }
func (p *tape) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (p *tape) SetWriteDeadline(time.Time) error { return nil }

// The two sides of what is recorded.
func serverSide(c *Conn) error {
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
		return fmt.Errorf("read %q: %w", b, err)
	}
	if _, err := c.Write([]byte("pong")); err != nil {
		return err
	}
	if _, err := c.Read(b); err != io.EOF {
		return fmt.Errorf("read the end: %w", err)
	}
	return c.Close()
}

func clientSide(c *Conn) error {
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "pong" {
		return fmt.Errorf("read %q: %w", b, err)
	}
	return c.Close()
}

// connection is what each side sent.
type connection struct{ client, server []byte }

// TestTranscripts replays recorded connections against either side, which must
// send every byte as it did then: whoever changes the wire changes testdata.
func TestTranscripts(t *testing.T) {
	for _, c := range []struct {
		name   string
		suite  uint16
		mutual bool
		resume string
	}{
		{"E053-one-way", ECC_SM4_GCM_SM3, false, ""},
		{"E053-mutual", ECC_SM4_GCM_SM3, true, ""},
		{"E013-one-way", ECC_SM4_CBC_SM3, false, ""},
		{"E013-mutual", ECC_SM4_CBC_SM3, true, ""},
		{"E051-mutual", ECDHE_SM4_GCM_SM3, true, ""},
		{"E011-mutual", ECDHE_SM4_CBC_SM3, true, ""},
		{"E053-resumed-by-id", ECC_SM4_GCM_SM3, false, "id"},
		{"E051-resumed-by-ticket", ECDHE_SM4_GCM_SM3, true, "ticket"},
	} {
		t.Run(c.name, func(t *testing.T) {
			setup := func() (*Config, *Config, int) {
				server, client := recordedSite(t).configs(c.suite, c.mutual)
				server.Rand, client.Rand = &stream{seed: "server"}, &stream{seed: "client"}
				server.NextProtos, client.NextProtos = []string{"h2"}, []string{"http/1.1", "h2"}
				if c.resume == "" {
					return server, client, 1
				}
				withSessions(server, client, c.resume)
				return server, client, 2
			}
			file := filepath.Join("testdata", c.name+".txt")
			if *update {
				server, client, n := setup()
				writeTranscript(t, file, n, server, client)
			}
			recorded := readTranscript(t, file)
			server, client, n := setup()
			if len(recorded) != n {
				t.Fatalf("%d connections are recorded, want %d", len(recorded), n)
			}
			for i, want := range recorded {
				replay(t, "server", i, want.client, want.server, func(p *tape) (*Conn, error) {
					conn := Server(p, server)
					return conn, serverSide(conn)
				})
				replay(t, "client", i, want.server, want.client, func(p *tape) (*Conn, error) {
					conn := Client(p, client)
					return conn, clientSide(conn)
				})
			}
		})
	}
}

func replay(t *testing.T, who string, i int, in, want []byte, run func(*tape) (*Conn, error)) {
	t.Helper()
	p := &tape{in: bytes.NewReader(in)}
	c, err := run(p)
	if err != nil {
		t.Errorf("connection %d, %s: %v", i, who, err)
	}
	if c.ConnectionState().DidResume != (i > 0) {
		t.Errorf("connection %d, %s: resumed %v", i, who, i == 0)
	}
	got := p.out.Bytes()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	t.Errorf("connection %d, %s: sent %d bytes, recorded are %d; the first difference is at %d (run with -update if the wire is meant to change)", i, who, len(got), len(want), at)
}

// recorder keeps what goes through a transport in one direction.
type recorder struct {
	net.Conn
	sent bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error) {
	r.sent.Write(b)
	return r.Conn.Write(b)
}

func writeTranscript(t *testing.T, file string, n int, server, client *Config) {
	t.Helper()
	var out bytes.Buffer
	for i := range n {
		a, b := socketPair(t, "tcp4")
		s, c := &recorder{Conn: a}, &recorder{Conn: b}
		var wg sync.WaitGroup
		var serverErr, clientErr error
		wg.Go(func() { serverErr = serverSide(Server(s, server)) })
		wg.Go(func() { clientErr = clientSide(Client(c, client)) })
		wg.Wait()
		if err := errors.Join(serverErr, clientErr); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "connection %d\n", i)
		dump(&out, "client", c.sent.Bytes())
		dump(&out, "server", s.sent.Bytes())
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// dump writes one record a line.
func dump(w io.Writer, who string, b []byte) {
	for len(b) >= recordHeader {
		n := recordHeader + int(binary.BigEndian.Uint16(b[3:]))
		fmt.Fprintf(w, "%s %x %x\n", who, b[:recordHeader], b[recordHeader:n])
		b = b[n:]
	}
}

func readTranscript(t *testing.T, file string) (out []connection) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		who, rest, _ := strings.Cut(lines.Text(), " ")
		if who == "connection" {
			out = append(out, connection{})
			continue
		}
		b, err := hex.DecodeString(strings.ReplaceAll(rest, " ", ""))
		if err != nil || len(out) == 0 {
			t.Fatalf("%s: %q: %v", file, lines.Text(), err)
		}
		last := &out[len(out)-1]
		switch who {
		case "client":
			last.client = append(last.client, b...)
		case "server":
			last.server = append(last.server, b...)
		default:
			t.Fatalf("%s: %q", file, lines.Text())
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}
