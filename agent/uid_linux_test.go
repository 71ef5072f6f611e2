package agent

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// The test binary runs again as another user and knocks at the addresses in
// this variable: "network address" lines. It prints one line of JSON for each.
const knockVar = "YUMEN_TEST_KNOCK"

type knocked struct {
	Addr, Got, Err string
}

func TestMain(m *testing.M) {
	if list := os.Getenv(knockVar); list != "" {
		for _, line := range strings.Split(list, "\n") {
			network, addr, _ := strings.Cut(line, " ")
			_ = json.NewEncoder(os.Stdout).Encode(knock(network, addr))
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// knock says what fits every face and reports what came back.
func knock(network, addr string) knocked {
	c, err := net.Dial(network, addr)
	if err != nil {
		return knocked{Addr: addr, Err: err.Error()}
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	say := "GET / HTTP/1.1\r\nHost: " + addr + "\r\nConnection: close\r\n\r\n"
	if network == "socks" {
		say = "\x05\x01\x00"
	}
	if _, err := io.WriteString(c, say); err != nil {
		return knocked{Addr: addr, Err: err.Error()}
	}
	b, err := bufio.NewReader(c).ReadString('\n')
	k := knocked{Addr: addr, Got: b}
	if err != nil {
		k.Err = err.Error()
	}
	return k
}

func knockAs(t *testing.T, uid uint32, lines []string) []knocked {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(exe) // the folder of the test binary may be closed to the other user
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(t.Context(), "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = []string{knockVar + "=" + strings.Join(lines, "\n")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var ks []knocked
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var k knocked
		if err := d.Decode(&k); err != nil {
			t.Fatal(err)
		}
		ks = append(ks, k)
	}
	return ks
}

// Every face, on IPv4 and IPv6, gives another local user nothing: no byte, no
// answer, a reset.
func TestAnotherLocalUserIsRefusedAtEveryFace(t *testing.T) {
	r := newRig(t, allFaces)
	r.dialer.open = echo(t)
	r.serve()
	var lines []string
	for _, f := range r.a.Status().Faces {
		lines = append(lines, "tcp "+f.Addr)
	}
	check := func(ks []knocked) {
		t.Helper()
		if len(ks) != len(lines) {
			t.Fatalf("%d answers, want %d", len(ks), len(lines))
		}
		for _, k := range ks {
			if k.Got != "" || !strings.Contains(k.Err, "reset by peer") && !strings.Contains(k.Err, "broken pipe") {
				t.Errorf("%s: got %q, %s, want a reset", k.Addr, k.Got, k.Err)
			}
		}
	}
	if os.Getuid() == 0 {
		check(knockAs(t, 12345, lines)) // a real other user
		if ks := knockAs(t, 12345, []string{"unix " + r.a.cfg.Socket}); ks[0].Err == "" {
			t.Errorf("the socket of the verbs: got %+v", ks[0])
		}
	} else {
		r.a.uid++ // we are the other user now
		var ks []knocked
		for _, l := range lines {
			network, addr, _ := strings.Cut(l, " ")
			ks = append(ks, knock(network, addr))
		}
		check(ks)
		r.a.uid--
	}
	if s := r.a.Status(); s.Strangers != uint64(len(lines)) || len(r.dialer.last().requests()) != 0 {
		t.Errorf("%d strangers counted, %d flows asked for", s.Strangers, len(r.dialer.last().requests()))
	}
	if n := len(r.logs.FilterMessage("local connection refused").All()); n != len(lines) {
		t.Errorf("%d log lines, want %d", n, len(lines))
	}
	got := r.link.alerts(alert.AccessRefused)
	if len(got) != 1 || got[0].Reason != reason.LocalUser {
		t.Errorf("alerts %+v, want one (the others are held back)", got)
	}
	c, code := socks(t, r.face("socks5"), "10.0.0.5:5432")
	if code != 0 {
		t.Fatalf("our own user: code %d", code)
	}
	roundTrip(t, c)
}

func TestWithoutAnswerFromTheKernelNobodyIsServed(t *testing.T) {
	r := newRig(t, nil)
	r.a.peer = func(net.Conn) (uint32, error) { return 0, fmt.Errorf("table not readable") }
	r.dialer.open = echo(t)
	r.serve()
	if b, err := untilReset(r.face("socks5")); err == nil || len(b) != 0 {
		t.Errorf("got %q, %v, want a reset", b, err)
	}
}
