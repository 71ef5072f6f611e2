package audit

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

func manyLines(n int) []byte {
	var b []byte
	at := time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)
	for i := range n {
		r := Record{
			Time: at.Add(time.Duration(i) * 137_111), Kind: End, GatewayID: "GW000000001", UserID: fmt.Sprintf("USR%08d", i%7), SessionID: strings.Repeat("s", 12), AppID: "APP00000001",
			Carrier: "h1", RequestID: fmt.Sprintf("%024x", uint64(i)*0x9e3779b97f4a7c15), Method: "GET", Path: fmt.Sprintf("/api/v1/things/%d", i%13), Protocol: "tls1.3",
			Suite: "TLS_AES_128_GCM_SHA256", Remote: fmt.Sprintf("192.0.2.1:%d", 30000+i%64), Allowed: true, Result: "ok", BytesOut: int64(i * 7), Duration: time.Duration(i*977) * time.Microsecond, Detail: "status 200",
		}
		if i%10 == 9 {
			r.Carrier, r.PolicyID, r.Allowed = "", "POL00000001", false
		}
		b = appendLine(b, &r)
	}
	return b
}

func TestPackedLinesComeBackAndAreSmall(t *testing.T) {
	lines := manyLines(1000)
	packed := pack(nil, lines)
	got, err := unpack(packed, len(lines))
	if err != nil || !bytes.Equal(got, lines) {
		t.Fatalf("%v, %d bytes of %d", err, len(got), len(lines))
	}
	if len(packed) > len(lines)/3 {
		t.Errorf("%d bytes became %d", len(lines), len(packed))
	}
	t.Logf("%d bytes became %d", len(lines), len(packed))
	if _, err := unpack(packed, len(lines)-1); err == nil {
		t.Error("more than the limit was unpacked")
	}
}

func FuzzPackedLines(f *testing.F) {
	f.Add(manyLines(3), []byte{0, 1, '\n'})
	f.Add([]byte("a,b\n,c\n\n,,\n"), []byte{0, 2, 'a', '\n', 2, 0})
	f.Add([]byte(",x\n1\n,"), []byte{9, 9, 9})
	f.Fuzz(func(t *testing.T, lines, packed []byte) {
		if got, err := unpack(pack(nil, lines), len(lines)); err != nil || !bytes.Equal(got, lines) {
			t.Errorf("%q came back as %q, %v", lines, got, err)
		}
		if out, err := unpack(packed, 1<<10); err == nil && len(out) > 1<<10 {
			t.Errorf("%d bytes of at most 1024", len(out))
		}
	})
}

func BenchmarkPack(b *testing.B) {
	lines := manyLines(200)
	var out []byte
	b.SetBytes(int64(len(lines)))
	for b.Loop() {
		out = pack(out[:0], lines)
	}
	b.ReportMetric(b.Elapsed().Seconds()*1e9/float64(b.N)/200, "ns/record")
}
