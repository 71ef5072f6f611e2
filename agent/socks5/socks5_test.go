package socks5

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
)

type script struct {
	in  io.Reader
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error) { return s.out.Write(p) }

func TestGreeting(t *testing.T) {
	for _, tc := range []struct {
		name, in, out string
		want          error
	}{
		{"no authentication", "\x05\x01\x00", "\x05\x00", nil},
		{"among others", "\x05\x03\x02\x00\x01", "\x05\x00", nil},
		{"password only", "\x05\x01\x02", "\x05\xff", ErrNoMethod},
		{"no method", "\x05\x00", "\x05\xff", ErrNoMethod},
		{"version 4", "\x04\x01\x00\x50", "", ErrNotSOCKS5},
		{"HTTP", "GET / HTTP/1.1\r\n", "", ErrNotSOCKS5},
		{"cut", "\x05\x02\x00", "", io.ErrUnexpectedEOF},
	} {
		s := &script{in: strings.NewReader(tc.in)}
		if err := Greet(s); !errors.Is(err, tc.want) || s.out.String() != tc.out {
			t.Errorf("%s: got %v and % x, want %v and % x", tc.name, err, s.out.String(), tc.want, tc.out)
		}
	}
}

func TestRequest(t *testing.T) {
	for _, tc := range []struct {
		name, in, want string
		code           Code
	}{
		{"IPv4", "\x05\x01\x00\x01\x0a\x00\x00\x05\x15\x38", "10.0.0.5:5432", Granted},
		{"IPv6", "\x05\x01\x00\x04\xfd\x00" + strings.Repeat("\x00", 13) + "\x05\x00\x50", "[fd00::5]:80", Granted},
		{"mapped IPv4", "\x05\x01\x00\x04" + strings.Repeat("\x00", 10) + "\xff\xff\x0a\x00\x00\x05\x00\x50", "10.0.0.5:80", Granted},
		{"name", "\x05\x01\x00\x03\x07db.test\x15\x38", "db.test:5432", Granted},
		{"address as name", "\x05\x01\x00\x03\x0810.0.0.5\x15\x38", "10.0.0.5:5432", Granted},
		{"name with newline", "\x05\x01\x00\x03\x04a\nbc\x15\x38", "", AddressUnknown},
		{"empty name", "\x05\x01\x00\x03\x00\x15\x38", "", AddressUnknown},
		{"bind", "\x05\x02\x00\x01\x0a\x00\x00\x05\x15\x38", "10.0.0.5:5432", CommandUnknown},
		{"type 2", "\x05\x01\x00\x02\x0a\x00\x00\x05\x15\x38", "", AddressUnknown},
		{"reserved byte", "\x05\x01\x01\x01\x0a\x00\x00\x05\x15\x38", "", GeneralFailure},
	} {
		q, err := ReadRequest(strings.NewReader(tc.in))
		var re *RequestError
		switch {
		case tc.code == Granted && (err != nil || q.Target.String() != tc.want):
			t.Errorf("%s: got %v, %v, want %s", tc.name, q.Target, err, tc.want)
		case tc.code != Granted && (!errors.As(err, &re) || re.Code != tc.code):
			t.Errorf("%s: got error %v, want code %d", tc.name, err, tc.code)
		}
	}
}

func TestRequestIsReadToItsLastByteAndNoFurther(t *testing.T) {
	r := strings.NewReader("\x05\x01\x00\x03\x07db.test\x15\x38\x16\x03\x01")
	if _, err := ReadRequest(r); err != nil {
		t.Fatal(err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "\x16\x03\x01" {
		t.Errorf("%d bytes are left for the flow, want 3", len(rest))
	}
}

func TestReply(t *testing.T) {
	for bound, want := range map[netip.AddrPort]string{
		{}:                                      "\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00",
		netip.MustParseAddrPort("127.0.0.1:80"): "\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50",
		netip.MustParseAddrPort("[::1]:80"):     "\x05\x02\x00\x04" + strings.Repeat("\x00", 15) + "\x01\x00\x50",
	} {
		var b bytes.Buffer
		if err := WriteReply(&b, NotAllowed, bound); err != nil || b.String() != want {
			t.Errorf("%v: % x, want % x", bound, b.String(), want)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte("\x05\x01\x00\x03\x07db.test\x15\x38"))
	f.Add([]byte("\x05\x03\x00\x01\x0a\x00\x00\x05\x15\x38"))
	f.Add([]byte("\x05\x01\x00\x03\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		q, err := ReadRequest(bytes.NewReader(in))
		if err != nil {
			return
		}
		if (q.Target.Name == "") == !q.Target.Addr.IsValid() {
			t.Errorf("% x: a target has a name or an address, got %+v", in, q.Target)
		}
		if s := q.Target.String(); strings.ContainsAny(s, "\r\n\x00 /") {
			t.Errorf("% x: %q could break a log line", in, s)
		}
	})
}

func FuzzDatagram(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01\x0a\x00\x00\x05\x00\x35payload"))
	f.Add([]byte("\x00\x00\x00\x03\x07db.test\x00\x35"))
	f.Fuzz(func(t *testing.T, in []byte) {
		d, payload, err := ParseDatagram(in)
		if err != nil {
			return
		}
		again, p2, err := ParseDatagram(AppendDatagram(nil, d, payload))
		if err != nil || again != d || !bytes.Equal(p2, payload) {
			t.Errorf("% x: %v %q became %v %q, %v", in, d, payload, again, p2, err)
		}
	})
}
