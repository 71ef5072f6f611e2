package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// SSH is an OpenSSH server of a test, and a key that opens it.
type SSH struct {
	Port        int
	Key, Client string // file of the private key; the client program
}

// NewSSH starts an OpenSSH server on loopback for the user who runs the test.
func NewSSH(o Owner) *SSH {
	o.Helper()
	s := &SSH{Port: Port(o), Client: lookPath(o, "ssh")}
	dir := folder(o)
	s.Key = filepath.Join(dir, "key")
	for _, file := range []string{"key", "host"} {
		if out, err := exec.Command(lookPath(o, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, file)).CombinedOutput(); err != nil {
			o.Fatalf("make a key: %v: %s", err, out)
		}
	}
	_ = os.MkdirAll("/run/sshd", 0o755) // where sshd goes without privileges; without it sshd says so
	config := filepath.Join(dir, "sshd_config")
	text := fmt.Sprintf("ListenAddress 127.0.0.1:%d\nHostKey %s/host\nAuthorizedKeysFile %s/key.pub\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n", s.Port, dir, dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		o.Fatalf("%v", err)
	}
	p := start(o, "sshd", exec.Command(lookPath(o, "sshd"), "-D", "-e", "-f", config))
	p.until(10*time.Second, func() error { return reachable(Loopback(false, s.Port)) })
	return s
}

// Options are the words of a client that knows no host and asks nothing.
func (s *SSH) Options(port string) []string {
	return []string{"-p", port, "-i", s.Key, "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"}
}

// NewDNS starts a resolver on loopback that knows names with the addresses
// given, and returns its port.
func NewDNS(o Owner, names map[string]string) int {
	o.Helper()
	port := Port(o)
	args := []string{"--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces", "--listen-address=127.0.0.1",
		"--port=" + strconv.Itoa(port), "--pid-file=", "--user=root"}
	for name, addr := range names {
		args = append(args, "--address=/"+name+"/"+addr)
	}
	p := start(o, "dnsmasq", exec.Command(lookPath(o, "dnsmasq"), args...))
	p.until(10*time.Second, func() error { return reachable(Loopback(false, port)) })
	return port
}

// NewIperf starts an iperf3 server on loopback, which takes one client after
// the other, and returns its port.
func NewIperf(o Owner) int {
	o.Helper()
	port := Port(o)
	p := start(o, "iperf3", exec.Command(lookPath(o, "iperf3"), "-s", "-B", "127.0.0.1", "-p", strconv.Itoa(port)))
	p.until(10*time.Second, func() error { return reachable(Loopback(false, port)) })
	return port
}

// Program returns the path of a program that test/needs.sh installs.
func Program(o Owner, name string) string { o.Helper(); return lookPath(o, name) }
