package bpf

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Under a flood of SYNs from a million sources, curl gets its page from a
// published port again and again: the guard answers by the listener's cookies
// from a rate on, and leaves SYNs to the stack when the flood is over.
func TestSYNCookies(t *testing.T) {
	needBPF(t)
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("NOT TESTED: curl is not here")
	}
	p := newPair(t)
	ip(t, "route add default via 10.77.0.2") // answers to spoofed sources leave
	// A short queue is full at once: before that the kernel gives no cookies.
	if err := os.WriteFile("/proc/sys/net/core/somaxconn", []byte("64"), 0); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, Native)
	cfg.SYNCookies = 500
	g := mustOpen(t, cfg)
	if err := g.Attach(); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"10.77.0.1:80", "[fd77::1]:80"} {
		var ln net.Listener
		var err error
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the address may still be on its way
			if ln, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", host); err == nil || time.Now().After(end) {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("page ", 20_000)) })}
		go func() { _ = s.Serve(ln) }()
		t.Cleanup(func() { s.Close() })
	}
	ifc, err := net.InterfaceByName("g0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx, nil, nil) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	var fd int
	p.out(t, func() {
		// A veth takes what XDP sends back only where XDP runs at its other end.
		pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "Dual MIT/GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
		if err != nil {
			t.Error(err)
			return
		}
		h, err := net.InterfaceByName("h0")
		if err != nil {
			t.Error(err)
			return
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: pass, Interface: h.Index, Flags: link.XDPDriverMode})
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { l.Close(); pass.Close() })
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: h.Index})
		}
		if err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	defer unix.Close(fd)
	curl := func(when, url string) {
		t.Helper()
		p.out(t, func() {
			if out, err := exec.Command("curl", "-sS", "-o", "/dev/null", "-m", "20", "-w", "%{http_code} %{size_download}", url).CombinedOutput(); err != nil || string(out) != "200 100000" {
				t.Errorf("%s: curl %s: %v: %s", when, url, err, out)
			}
		})
	}
	counter := func(v Verdict) uint64 {
		c, err := g.Counters()
		if err != nil {
			t.Fatal(err)
		}
		return c[IPv4][v] + c[IPv6][v]
	}
	curl("before", "http://10.77.0.1/")
	if counter(PassCookie) != 0 {
		t.Error("a SYN was answered by a cookie before there was a flood")
	}

	var sent atomic.Int64
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		f := append(ifc.HardwareAddr[:6:6], frame("198.51.100.1", 6, append(syn(5, 80), 2, 4, 5, 180))[6:]...)
		f[47-1] = 0x60 // the header with its option
		copy(f[30:], []byte{10, 77, 0, 1})
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for n := uint32(0); ; {
			for range 100 { // ten thousand a second
				n++
				binary.BigEndian.PutUint32(f[26:], 16<<24|n*2654435761>>12)
				binary.BigEndian.PutUint16(f[34:], uint16(1024+n%60000))
				binary.BigEndian.PutUint16(f[24:], 0)
				binary.BigEndian.PutUint16(f[24:], ^sum16(0, f[14:34]))
				binary.BigEndian.PutUint16(f[50:], 0)
				binary.BigEndian.PutUint16(f[50:], ^sum16(uint32(6+24), append(append([]byte{}, f[26:34]...), f[34:58]...)))
				if unix.Sendto(fd, f, 0, nil) == nil {
					sent.Add(1)
				}
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	for end := time.Now().Add(20 * time.Second); counter(PassCookie) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			c, _ := g.Counters()
			t.Fatalf("no SYN was answered; %d published, flag %d, %d sent", c[IPv4][PassPublished], g.tune.load32(tuneCookie), sent.Load())
		}
	}
	rounds, here, stack := 8, counter(PassCookie), counter(PassPublished)
	for range rounds {
		curl("in the flood", "http://10.77.0.1/")
		curl("in the flood", "http://[fd77::1]/")
	}
	received, kernel := cookies(t, "SyncookiesRecv"), cookies(t, "SyncookiesSent")
	t.Logf("%d SYNs sent, %d answered here, %d left to the stack; the kernel gave %d cookies away and took %d back", sent.Load(), counter(PassCookie), counter(PassPublished), kernel, received)
	if received < rounds {
		t.Errorf("%d handshakes ended with a cookie, %d expected at least", received, rounds)
	}
	if here, stack = counter(PassCookie)-here, counter(PassPublished)-stack; here < 4*stack {
		t.Errorf("once it was on, %d SYNs were answered here and %d packets left to the stack", here, stack)
	}
	close(stop)
	<-ended
	curl("after", "http://10.77.0.1/")
	if os.Getenv("YUMEN_LONG") != "1" {
		return // the rest is calmFor
	}
	for end := time.Now().Add(30 * time.Second); g.tune.load32(tuneCookie) != 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("cookies never end")
		}
	}
}

func sum16(s uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// cookies returns one of the kernel's own counts, in this thread's namespace.
func cookies(t testing.TB, name string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/netstat")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
	n, err := strconv.Atoi(values[slices.Index(names, name)])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
