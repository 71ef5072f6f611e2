package testbed

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Connector makes connections, each with one request, at a rate, from a process
// of its own: it takes as little of the processor as a TLS client can, so that
// the gateway is what limits it. Sessions are resumed; TLS 1.2 needs no key
// exchange then. One connection in FullEvery makes a full handshake.
type Connector struct {
	o     Owner
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan Connected
}

// ConnectorConfig says where to and how often.
type ConnectorConfig struct {
	Address   string
	Host      string // server name, and Host with Port
	Port      int
	Path      string
	Rate      int // connections a second
	AtOnce    int // beyond, the rate is not kept
	FullEvery int // 0: never, but for the first
	Roots     []byte
	Cert, Key []byte // PEM
	Sources   int    // client addresses 127.1.0.1 and on
}

// Connected counts what has happened so far.
type Connected struct {
	Good    int64
	Failed  int64
	Late    int64 // not begun: too many were under way
	Resumed int64
	Slowest time.Duration
	First   string // what failed first
	CPU     time.Duration
	Took    time.Duration
}

const connectorEnv = "YUMEN_TEST_CONNECTOR"

// RunConnector is called first by TestMain: in the process of a connector it
// does not return.
func RunConnector() {
	if os.Getenv(connectorEnv) == "" {
		return
	}
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	var c ConnectorConfig
	if err == nil {
		err = json.Unmarshal(line, &c)
	}
	if err == nil {
		ctx, stop := context.WithCancel(context.Background())
		go func() { _, _ = in.ReadByte(); stop() }()
		err = c.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "connector:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// NewConnector starts one, which ends with o at the latest.
func NewConnector(o Owner, c ConnectorConfig) *Connector {
	o.Helper()
	exe, err := os.Executable()
	if err != nil {
		o.Fatalf("%v", err)
	}
	k := &Connector{o: o, cmd: exec.Command(exe), lines: make(chan Connected, 1)}
	k.cmd.Env = append(os.Environ(), connectorEnv+"=1", "GOGC=400")
	k.cmd.Stderr = os.Stderr
	k.in, err = k.cmd.StdinPipe()
	if err != nil {
		o.Fatalf("%v", err)
	}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		o.Fatalf("%v", err)
	}
	if err := k.cmd.Start(); err != nil {
		o.Fatalf("start connector: %v", err)
	}
	go func() {
		defer close(k.lines)
		dec := json.NewDecoder(out)
		for {
			var n Connected
			if dec.Decode(&n) != nil {
				return
			}
			select {
			case <-k.lines: // only the newest counts
			default:
			}
			k.lines <- n
		}
	}()
	var once sync.Once
	o.Cleanup(func() { once.Do(func() { k.in.Close(); _ = k.cmd.Process.Kill(); _ = k.cmd.Wait() }) })
	raw, err := json.Marshal(c)
	if err == nil {
		_, err = k.in.Write(append(raw, '\n'))
	}
	if err != nil {
		o.Fatalf("configure connector: %v", err)
	}
	return k
}

// Next waits for a newer count.
func (k *Connector) Next() Connected {
	k.o.Helper()
	select {
	case n, ok := <-k.lines:
		if ok {
			return n
		}
		k.o.Fatalf("the connector has ended")
	case <-time.After(60 * time.Second):
		k.o.Fatalf("the connector says nothing")
	}
	return Connected{}
}

// Stop ends the load and returns the last count.
func (k *Connector) Stop() (last Connected) {
	k.o.Helper()
	k.in.Close()
	for n := range k.lines {
		last = n
	}
	_ = k.cmd.Wait() // the last line tells
	return last
}

func (c *ConnectorConfig) run(ctx context.Context) error {
	cert, err := tls.X509KeyPair(c.Cert, c.Key)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.Roots)
	full := &tls.Config{RootCAs: roots, ServerName: c.Host, Certificates: []tls.Certificate{cert}, MaxVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{tls.X25519}}
	resumed := full.Clone()
	resumed.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s:%d\r\nConnection: close\r\n\r\n", c.Path, c.Host, c.Port)

	var good, failed, late, again, slowest atomic.Int64
	var first atomic.Pointer[string]
	one := func(n int) {
		cfg := resumed
		if c.FullEvery > 0 && n%c.FullEvery == c.FullEvery-1 {
			cfg = full
		}
		start := time.Now()
		did, err := connectOnce(c.Address, net.IPv4(127, 1, byte(n%c.Sources>>8), byte(n%c.Sources)+1), cfg, request)
		if err != nil {
			failed.Add(1)
			s := fmt.Sprintf("connection %d after %v: %v", n, time.Since(start), err)
			first.CompareAndSwap(nil, &s)
			return
		}
		good.Add(1)
		if did {
			again.Add(1)
		}
		for d := int64(time.Since(start)); ; {
			if old := slowest.Load(); old >= d || slowest.CompareAndSwap(old, d) {
				break
			}
		}
	}
	slots := make(chan struct{}, c.AtOnce)
	var all sync.WaitGroup
	begin := time.Now()
	report := func() error {
		n := Connected{Good: good.Load(), Failed: failed.Load(), Late: late.Load(), Resumed: again.Load(), Slowest: time.Duration(slowest.Load()), Took: time.Since(begin)}
		if s := first.Load(); s != nil {
			n.First = *s
		}
		var u syscall.Rusage
		if syscall.Getrusage(syscall.RUSAGE_SELF, &u) == nil {
			n.CPU = time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
		return json.NewEncoder(os.Stdout).Encode(n)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	begun, told := 0, time.Now()
	for ctx.Err() == nil {
		<-tick.C
		due := int(time.Since(begin).Seconds() * float64(c.Rate))
		for ; begun < due; begun++ {
			select {
			case slots <- struct{}{}:
				n := begun
				all.Go(func() { defer func() { <-slots }(); one(n) })
			default:
				late.Add(1)
			}
		}
		if time.Since(told) > 50*time.Millisecond {
			told = time.Now()
			if err := report(); err != nil {
				return err
			}
		}
	}
	all.Wait()
	return report()
}

var okStatus = []byte("HTTP/1.1 200 ")

// connectOnce makes one connection from an address and reads one answer to its
// end.
func connectOnce(to string, from net.IP, cfg *tls.Config, request []byte) (resumed bool, err error) {
	raw, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}).Dial("tcp", to)
	if err != nil {
		return false, err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return false, err
	}
	c := tls.Client(raw, cfg)
	if _, err := c.Write(request); err != nil {
		return false, fmt.Errorf("send: %w", err)
	}
	var buf [2048]byte
	n, err := 0, error(nil)
	for n < len(buf) && err == nil {
		var m int
		m, err = c.Read(buf[n:])
		n += m
	}
	if err != nil && err != io.EOF {
		return false, fmt.Errorf("receive: %w", err)
	}
	head, body, whole := bytes.Cut(buf[:n], []byte("\r\n\r\n"))
	if !bytes.HasPrefix(head, okStatus) || !whole || len(body) == 0 {
		return false, fmt.Errorf("answer %.200q", buf[:n])
	}
	return c.ConnectionState().DidResume, nil
}

// CertificatePEM returns a certificate and its key as files have them.
func CertificatePEM(o Owner, c *tls.Certificate) (cert, key []byte) {
	o.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		o.Fatalf("%v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
