package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net/netip"
	"strings"
	"testing"
)

func two(cmd, family byte, body string) string {
	b := append([]byte(signature), cmd, family, 0, 0)
	binary.BigEndian.PutUint16(b[14:], uint16(len(body)))
	return string(b) + body
}

const v4 = "\xc0\x00\x02\x01\xc6\x33\x64\x02\x04\x01\x01\xbb" // 192.0.2.1:1025 to 198.51.100.2:443

// summed appends a right checksum to an IPv4 header.
func summed() string {
	b := []byte(two(0x21, 0x11, v4+"\x03\x00\x04\x00\x00\x00\x00"))
	binary.BigEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return string(b)
}

func TestReadsWhatHasOneReading(t *testing.T) {
	four := Header{From: netip.MustParseAddrPort("192.0.2.1:1025"), To: netip.MustParseAddrPort("198.51.100.2:443")}
	six := Header{From: netip.MustParseAddrPort("[2001:db8::1]:1"), To: netip.MustParseAddrPort("[2001:db8::2]:65535")}
	local := Header{Local: true}
	long := strings.Repeat("\x04\x00\x01x", 100)
	for text, want := range map[string]Header{
		"PROXY TCP4 192.0.2.1 198.51.100.2 1025 443\r\n": four,
		"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n": six,
		"PROXY UNKNOWN\r\n": local,
		"PROXY UNKNOWN ffff:f...f ffff:f...f 65535 65535\r\n": local,
		two(0x21, 0x11, v4):      four,
		two(0x21, 0x11, v4+long): four,
		two(0x21, 0x21, " \x01\r\xb8"+strings.Repeat("\x00", 11)+"\x01 \x01\r\xb8"+strings.Repeat("\x00", 11)+"\x02\x00\x01\xff\xff"): six,
		two(0x20, 0x11, "junk"): local,
		two(0x20, 0x00, ""):     local,
		two(0x21, 0x00, ""):     local,
		summed():                four,
	} {
		r := strings.NewReader(text + "rest")
		got, err := Read(r)
		rest, _ := io.ReadAll(r)
		if err != nil || got != want || string(rest) != "rest" {
			t.Errorf("%q: %+v, %v, %q left", text, got, err, rest)
		}
	}
}

func TestRefusesWhatHasTwoReadings(t *testing.T) {
	bad := summed()
	for _, text := range []string{
		"PROXY TCP4 192.0.2.1 198.51.100.2 1025 443\n", "PROXY TCP4  192.0.2.1 198.51.100.2 1025 443\r\n", "PROXY TCP4 192.0.2.1 198.51.100.2 1025\r\n",
		"PROXY TCP4 192.0.2.01 198.51.100.2 1025 443\r\n", "PROXY TCP4 192.0.2.1 198.51.100.2 01025 443\r\n", "PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n",
		"PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n", "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n", "PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
		"PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2\r\n", "PROXY TCP4 0.0.0.0 198.51.100.2 1 2\r\n", "PROXY TCP4 224.0.0.1 198.51.100.2 1 2\r\n",
		"PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n", "PROXY UNKNOWNX\r\n", "proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n", "PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n",
		"PROXY UNKNOWN " + strings.Repeat("x", 200) + "\r\n", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00",
		two(0x11, 0x11, v4), two(0x22, 0x11, v4), two(0x21, 0x12, v4), two(0x21, 0x31, v4), two(0x21, 0x11, v4[:11]), two(0x21, 0x21, v4),
		two(0x21, 0x11, v4+"\x04\x00"), two(0x21, 0x11, v4+"\x04\x00\x02x"), two(0x21, 0x11, "\x00\x00\x00\x00"+v4[4:]), two(0x21, 0x11, strings.Repeat("x", 5000)),
		bad[:len(bad)-1] + "\x00\x00", two(0x21, 0x11, v4+"\x03\x00\x04\x00\x00\x00\x00"), two(0x21, 0x11, v4+"\x03\x00\x02\x00\x00"),
	} {
		if h, err := Read(strings.NewReader(text)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %+v, %v", text, h, err)
		}
	}
	for _, text := range []string{"", "PROXY TCP4 192.0", two(0x21, 0x11, v4)[:20], signature} {
		if _, err := Read(strings.NewReader(text)); err == nil || errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v, want the reader's error", text, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, s := range []string{"PROXY TCP4 192.0.2.1 198.51.100.2 1025 443\r\n", "PROXY TCP6 2001:db8::1 ::1 1 2\r\n", "PROXY UNKNOWN\r\n", two(0x21, 0x11, v4), summed(), two(0x20, 0, "")} {
		f.Add([]byte(s + "rest"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := Read(r)
		if err != nil {
			if h != (Header{}) {
				t.Fatalf("%q: %+v beside %v", b, h, err)
			}
			return
		}
		if h.Local {
			return
		}
		if !h.From.IsValid() || !h.To.IsValid() || h.From.Addr().Is4In6() {
			t.Fatalf("%q: %+v", b, h)
		}
		again, err := Read(bytes.NewReader(Append(nil, h.From, h.To)))
		if err != nil || again != h {
			t.Fatalf("%q: %+v, again %+v, %v", b, h, again, err)
		}
	})
}
