package listen

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

// long reports whether the tests that take minutes run.
func long() bool { return os.Getenv("YUMEN_LONG") == "1" }

// rss is what the kernel says that this process holds, in bytes.
func rss(t testing.TB) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip("no /proc: ", err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(raw), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}

// S22: handshakes that are begun and not ended cost less than 64 MiB however
// many there are, whatever they have sent, and others connect beside them.
// The attackers are descriptors of this process, which cost it nothing else.
func TestS22_HalfOpenHandshakesStayWithinTheirMemory(t *testing.T) {
	n := 1200
	if long() {
		n = 10_000
	}
	tls13 := captureHello(t, &tls.Config{ServerName: "app.example"})
	stages := []struct {
		name string
		sent []byte
	}{
		{"silent", nil},
		{"part of a hello", tls13[:200]},
		{"a hello of 30 KiB without its end", append([]byte{22, 3, 1, 0x3f, 0xf0, 1, 0, 0x7f, 0}, make([]byte, 15<<10)...)},
		{"TLS 1.3", tls13},
		{"TLS 1.2", captureHello(t, &tls.Config{ServerName: "app.example", MaxVersion: tls.VersionTLS12})},
		{"TLCP", capture(t, func(c net.Conn) {
			_ = tlcp.Client(c, &tlcp.Config{ServerName: "app.example", RootCAs: smx509.NewCertPool()}).Handshake()
		})},
	}
	for _, s := range stages {
		t.Run(s.name, func(t *testing.T) {
			f := startBoth(t, "127.0.0.1:0", Limits{Hello: time.Minute, Handshake: time.Minute})
			others := func() {
				t.Helper()
				if c, _, err := f.dial(t, &tls.Config{ServerName: "app.example"}); err != nil {
					t.Errorf("a TLS client beside %d half-open: %v", f.port.half.count(), err)
				} else {
					c.Close()
				}
				if c, _, err := f.tlcp(t, &tlcp.Config{ServerName: "app.example"}); err != nil {
					t.Errorf("a TLCP client beside %d half-open: %v", f.port.half.count(), err)
				} else {
					c.Close()
				}
			}
			others()
			var before, now runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			resident, most, peak := rss(t), 0, 0
			sample := func() {
				runtime.ReadMemStats(&now)
				most = max(most, int(now.HeapInuse+now.StackInuse)-int(before.HeapInuse+before.StackInuse))
				peak = max(peak, rss(t)-resident)
			}
			to := netip.MustParseAddrPort(f.address)
			for i := range n {
				fd := attack(t, [4]byte{127, 1, byte(i / 100), byte(1 + i%100)}, to)
				defer unix.Close(fd)
				_, _ = unix.Write(fd, s.sent) // a port that has enough closes on it
				if i%(n/10) == 0 {
					others()
					sample()
				}
			}
			others()
			sample()
			held, reckoned := f.port.half.size()
			t.Logf("%d begun, %d held, reckoned %d KiB; heap and stacks grew by %d KiB, resident by %d KiB", n, held, reckoned>>10, most>>10, peak>>10)
			if held < 300 || most > 64<<20 || reckoned > 24<<20 {
				t.Errorf("%d held, %d bytes more, reckoned %d", held, most, reckoned)
			}
		})
	}
}

// attack connects a socket that the runtime knows nothing of.
func attack(t testing.TB, from [4]byte, to netip.AddrPort) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: from})
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// The silent push out the silent, and no handshake; handshakes that stand still
// push out their own kind, and no newcomer.
func TestS22_TheSilentEndNoHandshake(t *testing.T) {
	h := newHalfOpen(Limits{HalfOpen: 10, HalfOpenPerSource: 1000, HalfOpenBytes: 1 << 30})
	var closed []string
	add := func(name string) *pending {
		p, ok := h.add(sourceOf(netip.MustParseAddr("10.0.0.1")), func() { closed = append(closed, name) })
		if !ok {
			t.Fatalf("%s was refused", name)
		}
		return p
	}
	honest := add("honest")
	h.begin(honest)
	for i := range 30 {
		add(fmt.Sprint("silent", i))
	}
	if slices.Contains(closed, "honest") || len(closed) != 21 || closed[0] != "silent0" {
		t.Errorf("silent ones pushed out %v", closed)
	}
	closed = nil
	for i := range 30 {
		h.begin(add(fmt.Sprint("stalled", i)))
	}
	newcomer := add("newcomer")
	if len(closed) != 31 || slices.Contains(closed, "newcomer") || !slices.Contains(closed, "stalled0") {
		t.Errorf("handshakes that stand still pushed out %v", closed)
	}
	h.begin(newcomer)
	h.begin(newcomer)
	if n, bytes := h.size(); n != 10 || bytes != 10*costPeek || !h.done(newcomer) || h.done(newcomer) {
		t.Errorf("%d are held, for %d bytes", n, bytes)
	}
}

// One source has its share of the memory and cannot push out the others.
func TestHalfOpenMemoryOfOneSource(t *testing.T) {
	h := newHalfOpen(Limits{HalfOpen: 1000, HalfOpenPerSource: 1000, HalfOpenBytes: 16 * costTLS})
	a, b := sourceOf(netip.MustParseAddr("10.0.0.1")), sourceOf(netip.MustParseAddr("10.0.0.2"))
	var closed []string
	add := func(s string) (*pending, bool) {
		from := a
		if s[0] == 'b' {
			from = b
		}
		return h.add(from, func() { closed = append(closed, s) })
	}
	first, _ := add("b1")
	if !h.grow(first, costTLS) {
		t.Fatal("the first may not grow")
	}
	held := 0
	for i := range 100 {
		p, ok := add(fmt.Sprintf("a%d", i))
		if ok && h.grow(p, costTLS) {
			held++
		} else if ok {
			h.done(p)
		}
	}
	if held != 4 || len(closed) != 0 {
		t.Errorf("one source holds %d handshakes of 16, and pushed out %v", held, closed)
	}
	if !h.grow(first, 4*costTLS) || h.grow(first, 5*costTLS) {
		t.Error("a source's share is not a quarter")
	}
	h.done(first)
	if n, bytes := h.size(); n != held || bytes != held*costTLS {
		t.Errorf("%d held, %d bytes", n, bytes)
	}
}

// 1,000 connections of both protocols at once: each is served by the one that
// it speaks.
func TestOnePortRoutesThousandMixedConnections(t *testing.T) {
	f := startBoth(t, "127.0.0.1:0", Limits{Hello: time.Minute, Handshake: time.Minute})
	curl, err := exec.LookPath("curl")
	if err != nil {
		curl = ""
		t.Log("curl is not there: crypto/tls takes its part")
	}
	root := t.TempDir() + "/root.pem"
	if err := os.WriteFile(root, f.ca.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	const each = 500
	var wg sync.WaitGroup
	slots := make(chan struct{}, 64)
	curls := make(chan struct{}, 4) // processes at once
	_, port, _ := net.SplitHostPort(f.address)
	for i := range each {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			cfg := &tlcp.Config{ServerName: "app.example", CipherSuites: []uint16{[]uint16{tlcp.ECC_SM4_GCM_SM3, tlcp.ECC_SM4_CBC_SM3}[i%2]}}
			want := "tlcp " + tlcp.CipherSuiteName(cfg.CipherSuites[0])
			c, got, err := f.tlcp(t, cfg)
			if err != nil || !strings.HasPrefix(got, want) {
				t.Errorf("TLCP client %d: %q, %v, want %s", i, got, err, want)
				return
			}
			c.Close()
		})
		wg.Go(func() {
			if curl != "" && i%20 == 0 {
				curls <- struct{}{}
				defer func() { <-curls }()
				out, err := exec.CommandContext(t.Context(), curl, "-sS", "--http1.1", "--max-time", "60", "--cacert", root,
					"--resolve", "curl.example:"+port+":127.0.0.1", "https://curl.example:"+port+"/").CombinedOutput()
				if err != nil || !strings.HasPrefix(string(out), "tls1.3 ") {
					t.Errorf("curl %d: %q, %v", i, out, err)
				}
				return
			}
			slots <- struct{}{}
			defer func() { <-slots }()
			version := []uint16{tls.VersionTLS12, tls.VersionTLS13}[i%2]
			c, got, err := f.dial(t, &tls.Config{ServerName: "app.example", MaxVersion: version})
			if want := []string{"tls1.2 ", "tls1.3 "}[i%2]; err != nil || !strings.HasPrefix(got, want) {
				t.Errorf("TLS client %d: %q, %v, want %s", i, got, err, want)
				return
			}
			c.Close()
		})
	}
	wg.Wait()
}
