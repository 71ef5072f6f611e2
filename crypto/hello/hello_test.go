package hello

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/reason"
)

// capture returns the first record that client sends.
func capture(t testing.TB, client func(net.Conn)) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer far.Close()
	go func() { client(near); near.Close() }()
	head := make([]byte, recordHeader)
	if _, err := io.ReadFull(far, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(far, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

func captureTLS(t testing.TB, cfg *tls.Config) []byte {
	return capture(t, func(c net.Conn) { _ = tls.Client(c, cfg).Handshake() })
}

func captureTLCP(t testing.TB) []byte {
	return capture(t, func(c net.Conn) {
		_ = tlcp.Client(c, &tlcp.Config{ServerName: "app.example", NextProtos: []string{"h2", "http/1.1"}, RootCAs: smx509.NewCertPool()}).Handshake()
	})
}

func TestReadsTLCPAndTLS(t *testing.T) {
	for name, c := range map[string]struct {
		raw    []byte
		newest uint16
		tlcp   bool
		says   string
	}{
		"tlcp":    {captureTLCP(t), VersionTLCP, true, "offered versions TLCP; suites E053 E013"},
		"tls 1.3": {captureTLS(t, &tls.Config{ServerName: "app.example", NextProtos: []string{"h2", "http/1.1"}}), VersionTLS13, false, "offered versions TLS1.3 TLS1.2; suites"},
		"tls 1.2": {captureTLS(t, &tls.Config{ServerName: "app.example", NextProtos: []string{"h2", "http/1.1"}, MaxVersion: tls.VersionTLS12}), VersionTLS12, false, "offered versions TLS1.2; suites"},
	} {
		h, err := Read(iotest.OneByteReader(bytes.NewReader(append(c.raw, "more"...))))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if h.ServerName != "app.example" || !slices.Equal(h.ALPN, []string{"h2", "http/1.1"}) || h.Newest() != c.newest || h.TLCP() != c.tlcp || h.ListsTLCP() {
			t.Errorf("%s: read %+v", name, h)
		}
		if !bytes.Equal(h.Raw, c.raw) {
			t.Errorf("%s: what is replayed differs from what was read", name)
		}
		if got := h.Describe(); !strings.HasPrefix(got, c.says) {
			t.Errorf("%s: described as %q, want %q", name, got, c.says)
		}
	}
}

// A hello that is spread over many records and many segments is read whole.
func TestHelloInManyRecords(t *testing.T) {
	for _, raw := range [][]byte{captureTLS(t, &tls.Config{ServerName: "app.example", NextProtos: []string{"h2", "yumen/1"}}), captureTLCP(t)} {
		body := raw[recordHeader:]
		for _, size := range []int{1, 3, 100} {
			var split []byte
			for part := range slices.Chunk(body, size) {
				split = append(split, 22, raw[1], raw[2], byte(len(part)>>8), byte(len(part)))
				split = append(split, part...)
			}
			h, err := Read(iotest.HalfReader(bytes.NewReader(split)))
			if err != nil {
				t.Fatal(err)
			}
			if h.ServerName != "app.example" || len(h.ALPN) != 2 || len(h.Suites) == 0 {
				t.Errorf("read %+v", h)
			}
			if !bytes.Equal(h.Raw, split) {
				t.Error("what is replayed differs from what was read")
			}
		}
	}
}

// A browser that lists the suites of TLCP in a TLS hello is told apart.
func TestTLSHelloThatListsTLCP(t *testing.T) {
	raw := captureTLS(t, &tls.Config{ServerName: "app.example"})
	// The first suite stands after record and message header, version, random
	// and a session id of 32 bytes, and the length of the list.
	const at = recordHeader + 4 + 2 + 32 + 33 + 2
	raw[at], raw[at+1] = 0xe0, 0x13
	h, err := Read(bytes.NewReader(raw))
	if err != nil || h.TLCP() || !h.ListsTLCP() {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestWhatIsNoHello(t *testing.T) {
	for name, c := range map[string]struct {
		raw  string
		want reason.Reason
	}{
		"http":            {"GET / HTTP/1.1\r\n", reason.PlainHTTP},
		"http, cut short": {"GET", reason.PlainHTTP},
		"h2c":             {"PRI * HTTP/2.0\r\n", reason.PlainHTTP},
		"ssl 2.0":         {"\x80\x2e\x01\x00\x02\x00\x15", reason.TLSVersion},
		"ssl 2.0 for tls": {"\x80\x2e\x01\x03\x01\x00\x15", reason.TLSVersion},
		"ssh":             {"SSH-2.0-OpenSSH\r\n", reason.HelloMalformed},
		"alert":           {"\x15\x03\x01\x00\x02\x02\x28", reason.HelloMalformed},
		"empty record":    {"\x16\x03\x01\x00\x00\x01", reason.HelloMalformed},
		"large record":    {"\x16\x03\x01\xff\xff\x01", reason.HelloMalformed},
		"large hello":     {"\x16\x03\x01\x00\x04\x01\xff\xff\xff", reason.HelloMalformed},
		"server hello":    {"\x16\x03\x01\x00\x04\x02\x00\x00\x00", reason.HelloMalformed},
		"other version":   {"\x16\x07\x01\x00\x04\x01\x00\x00\x00", reason.HelloMalformed},
		"empty hello":     {"\x16\x03\x01\x00\x04\x01\x00\x00\x00", reason.HelloMalformed},
	} {
		h, err := Read(strings.NewReader(c.raw))
		var e *Error
		if !errors.As(err, &e) || e.Reason != c.want || h == nil {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	for raw, want := range map[string]error{"": io.EOF, "\x16\x03": io.ErrUnexpectedEOF, "\x16\x03\x01\x00\x10ab": io.ErrUnexpectedEOF} {
		if _, err := Read(strings.NewReader(raw)); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", raw, err, want)
		}
	}
}

// What a stranger claims costs no memory before it arrives.
func TestClaimsCostNothing(t *testing.T) {
	h, err := Read(strings.NewReader("\x16\x03\x01\x40\x00\x01"))
	if !errors.Is(err, io.ErrUnexpectedEOF) || cap(h.Raw) > 600 {
		t.Errorf("%d bytes are held for 6, %v", cap(h.Raw), err)
	}
}

func TestReplayThenReadOn(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	go func() { io.WriteString(near, "later"); near.Close() }()
	c := Replay(far, []byte("peeked "))
	got, err := io.ReadAll(iotest.OneByteReader(c))
	if err != nil || string(got) != "peeked later" || c.peeked != nil || c.NetConn() != far {
		t.Errorf("%q, %v", got, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(captureTLS(f, &tls.Config{ServerName: "app.example", NextProtos: []string{"h2"}}))
	f.Add(captureTLCP(f))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{22, 1, 1, 0, 4, 1, 0, 0, 0})
	f.Add([]byte{0x80, 0x2e, 1, 3, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Read(bytes.NewReader(b))
		if h == nil || len(h.Raw) > len(b) || !bytes.Equal(h.Raw, b[:len(h.Raw)]) {
			t.Fatalf("read more than there is")
		}
		if len(h.Raw) > maxRaw || cap(h.Raw) > 2*len(h.Raw)+1024 {
			t.Fatalf("kept %d of %d bytes", cap(h.Raw), len(h.Raw))
		}
		if d := h.Describe(); err == nil && len(d) > 600 {
			t.Fatalf("described in %d bytes", len(d))
		}
	})
}

// The version of the records and that of the hello must be of one protocol:
// which of the two counts would be another reader's choice.
func TestS24_RecordsOfOneProtocolHelloOfTheOther(t *testing.T) {
	of := func(version string) string {
		return "\x01\x00\x00\x2b" + version + strings.Repeat("r", 32) + "\x00\x00\x04\xe0\x53\x13\x01\x01\x00"
	}
	record := func(version, body string) string { return "\x16" + version + "\x00" + string(rune(len(body))) + body }
	const tls, tlcp = "\x03\x03", "\x01\x01"
	for name, c := range map[string]struct {
		raw string
		ok  bool
	}{
		"TLS":                        {record(tls, of(tls)), true},
		"TLS, oldest record":         {record("\x03\x01", of(tls)), true},
		"TLCP":                       {record(tlcp, of(tlcp)), true},
		"TLS in records of TLCP":     {record(tlcp, of(tls)), false},
		"TLCP in records of TLS":     {record(tls, of(tlcp)), false},
		"TLCP that is still to come": {record(tlcp, of("\x01\x02")), false},
		"records of both, TLS":       {record(tls, of(tls)[:9]) + record(tlcp, of(tls)[9:]), false},
		"records of both, TLCP":      {record(tlcp, of(tlcp)[:9]) + record(tls, of(tlcp)[9:]), false},
	} {
		_, err := Read(strings.NewReader(c.raw))
		var e *Error
		if ok := err == nil; ok != c.ok || !ok && (!errors.As(err, &e) || e.Reason != reason.TLSVersion) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
