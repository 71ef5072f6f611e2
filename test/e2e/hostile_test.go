package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/tlcp"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/test/hostile"
	"github.com/yumen-zt/yumen/test/testbed"
)

// attack is a handshake that must not succeed, and the reasons by which the
// gateway may name it.
type attack struct {
	name string
	run  func(c *hostile.Client) error
	want []reason.Reason
}

// steps runs the client's part up to its end, with every answer read.
func steps(c *hostile.Client) error {
	if err := c.Do(hostile.SendHello, hostile.HearHello, hostile.HearFlight); err != nil {
		return err
	}
	return c.Do(append(c.Rest(), hostile.HearEnd)...)
}

// edit replaces one message.
func edit(kind byte, f func([]byte) []byte) func(*hostile.Client) error {
	return func(c *hostile.Client) error {
		c.Edit = func(k byte, m []byte) [][]byte {
			if k == kind {
				m = f(m)
			}
			return [][]byte{m}
		}
		return steps(c)
	}
}

// attacks are those of somebody who has genuine certificates, own.
func attacks(own *hostile.Identity) []attack {
	failed, version := []reason.Reason{reason.HandshakeFailed}, []reason.Reason{reason.TLSVersion}
	alien := hostile.NewAuthority("alien", nil).Identity()
	garbage := func(m []byte) []byte { b := make([]byte, len(m)-4); rand.Read(b); return hostile.Message(m[0], b) }
	tunnel := func(id *hostile.Identity) func(*hostile.Client) error {
		return func(c *hostile.Client) error {
			c.Suites, c.Own, c.Extensions = []uint16{hostile.ECDHEGCM}, id, []hostile.Extension{hostile.ALPN("yumen/1")}
			return steps(c)
		}
	}
	return []attack{
		{"foreign suites", func(c *hostile.Client) error { c.Suites = []uint16{0xe019, 0xc02f}; return steps(c) }, []reason.Reason{reason.NoCommonSuite}},
		{"TLS inside of TLCP", func(c *hostile.Client) error { c.HelloVersion = 0x0303; return steps(c) }, version},
		{"other protocol", func(c *hostile.Client) error {
			c.Extensions = []hostile.Extension{hostile.ALPN("smtp")}
			return steps(c)
		}, []reason.Reason{reason.ALPNRefused}},
		{"no compression", func(c *hostile.Client) error { c.Compressions = []byte{1}; return steps(c) }, failed},
		{"version changed on the way", func(c *hostile.Client) error {
			if err := c.Do(hostile.SendHello, hostile.HearHello, hostile.HearFlight); err != nil {
				return err
			}
			c.RecordVersion = 0x0303
			return c.Do(hostile.Certificate)
		}, version},
		{"garbage for a key exchange", edit(hostile.MsgClientKeyExchange, garbage), failed},
		{"Finished tampered", edit(hostile.MsgFinished, garbage), failed},
		{"Finished left out", func(c *hostile.Client) error {
			if err := c.Do(hostile.SendHello, hostile.HearHello, hostile.HearFlight, hostile.Certificate, hostile.KeyExchange, hostile.Verify, hostile.CCS); err != nil {
				return err
			}
			c.Send(hostile.TypeData, []byte("GET / HTTP/1.1\r\n\r\n"))
			return nil
		}, failed},
		{"keys left out", func(c *hostile.Client) error {
			return c.Do(hostile.SendHello, hostile.HearHello, hostile.HearFlight, hostile.CCS, hostile.Finished)
		}, failed},
		{"second hello", func(c *hostile.Client) error {
			return c.Do(hostile.SendHello, hostile.HearHello, hostile.HearFlight, hostile.SendHello)
		}, failed},
		{"message of 16 MiB", edit(hostile.MsgClientKeyExchange, func(m []byte) []byte { return append([]byte{m[0], 255, 255, 255}, m[4:]...) }), failed},
		{"a flood of warnings", func(c *hostile.Client) error {
			if err := c.Do(hostile.SendHello, hostile.HearHello, hostile.HearFlight); err != nil {
				return err
			}
			for range 2000 {
				c.Send(hostile.TypeAlert, []byte{1, 112})
			}
			return nil
		}, failed},
		{"pieces of nothing", func(c *hostile.Client) error {
			if err := c.Do(hostile.SendHello, hostile.HearHello, hostile.HearFlight); err != nil {
				return err
			}
			for range 2000 {
				c.Send(hostile.TypeHandshake, nil)
			}
			return nil
		}, failed},
		{"a bit of Finished", func(c *hostile.Client) error {
			if err := c.Do(hostile.SendHello, hostile.HearHello, hostile.HearFlight, hostile.Certificate, hostile.KeyExchange, hostile.Verify, hostile.CCS); err != nil {
				return err
			}
			c.Wire = func(raw []byte) []byte { raw = bytes.Clone(raw); raw[len(raw)-1] ^= 4; return raw }
			return c.Do(hostile.Finished)
		}, failed},
		{"tunnel without certificates", tunnel(nil), []reason.Reason{reason.ClientCertAbsent}},
		{"tunnel of a foreign authority", tunnel(alien), []reason.Reason{reason.ClientCertIssuer}},
		{"tunnel with the two exchanged", tunnel(&hostile.Identity{Sign: own.Enc, Enc: own.Sign}), []reason.Reason{reason.ClientCertUsage, reason.ClientCertBad}},
	}
}

// strike opens a connection and attacks. It returns the client's address and
// the alert that ended the connection.
func strike(t *testing.T, l *lone, v6 bool, own *hostile.Identity, a attack) (from string, alert *hostile.Alert) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", testbed.Loopback(v6, l.Port), 10*time.Second)
	if err != nil {
		t.Errorf("%s: %v", a.name, err)
		return "", nil
	}
	defer conn.Close()
	c := &hostile.Client{Suites: []uint16{hostile.ECCGCM}}
	c.Conn, c.Own = &watched{Conn: conn}, own
	c.Deadline(20 * time.Second)
	fault := a.run(c)
	c.CloseWrite()
	alert, err = c.End()
	if err != nil {
		t.Errorf("%s: the gateway has not ended the connection: %v", a.name, err)
	}
	errors.As(fault, &alert) // it was met on the way
	return conn.LocalAddr().String(), alert
}

// leafOf is an enrolled certificate with its key.
func leafOf(t *testing.T, keys *keystore.Store, name string) *hostile.Leaf {
	t.Helper()
	chain, err := keys.Chain(name)
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.Signer(name)
	if err != nil {
		t.Fatal(err)
	}
	return &hostile.Leaf{Cert: chain[0], Key: key.(*sm2.PrivateKey)}
}

// watched is a connection whose half can be closed.
type watched struct{ net.Conn }

func (w *watched) CloseWrite() error { return w.Conn.(*net.TCPConn).CloseWrite() }

// gauge reads one value of the gateway's metrics.
func gauge(t *testing.T, at, name string) float64 {
	t.Helper()
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Get("http://" + at + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	s := bufio.NewScanner(resp.Body)
	for s.Scan() {
		if v, ok := strings.CutPrefix(s.Text(), name+" "); ok {
			f, err := strconv.ParseFloat(v, 64)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// Hostile TLCP clients at the port of the real gateway: others are served
// beside them, each failure is told with its reason in log and audit, and
// nothing is left of them.
func TestS24_HostileClientsAtTheRealPort(t *testing.T) {
	t.Parallel()
	l := newLone(t, "")
	roots := smx509.NewCertPool()
	if !roots.AppendCertsFromPEM(l.CA.RootPEM(keystore.TLCPRoot)) {
		t.Fatal("no root of TLCP")
	}
	keys := l.AgentKeys(aliceAgent, aliceDevice)
	pair, err := keys.TLCPPair()
	if err != nil {
		t.Fatal(err)
	}
	own := &hostile.Identity{Sign: leafOf(t, keys, keystore.TLCPSign), Enc: leafOf(t, keys, keystore.TLCPEnc)}
	honest := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		c, err := tlcp.Dial(ctx, "tcp", testbed.Loopback(false, l.Port), &tlcp.Config{RootCAs: roots, Certificates: []*tlcp.Pair{pair}, NextProtos: []string{"http/1.1"}})
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			return err
		}
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s:%d\r\nAccept: application/json\r\n\r\n", l.app.Host(), l.Port)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := honest(); err != nil {
		t.Fatalf("a genuine TLCP client: %v", err)
	}
	rest := beside(t, l)
	all := attacks(own)

	// Each once, and what is said of it.
	for i, a := range all {
		from, alert := strike(t, l, i%2 == 1, own, a)
		if alert == nil || alert.Level != 2 || alert.Code == 0 {
			t.Errorf("%s: %v, want a fatal alert", a.name, alert)
		}
		said := l.Audit.Await(t, 1, a.name, func(r *audit.Record) bool { return r.Remote == from && !r.Allowed && r.Code != 0 })
		if r := said[0]; !slices.Contains(a.want, r.Code) || r.Detail == "" {
			t.Errorf("%s: the audit says %s over %s, %q; want one of %v", a.name, r.Result, r.Protocol, r.Detail, a.want)
		}
		testbed.Eventually(t, 10*time.Second, a.name+" is in the log", func() bool {
			return strings.Contains(l.Output(), `"remote_addr":"`+from+`"`)
		})
	}

	// Many, and what is left of them.
	rounds := 10
	if testbed.Long() {
		rounds = 1000
	}
	goroutines, fds, memory := gauge(t, l.Metrics, "go_goroutines"), gauge(t, l.Metrics, "process_open_fds"), gauge(t, l.Metrics, "process_resident_memory_bytes")
	var wg sync.WaitGroup
	began := time.Now()
	for worker := range 4 {
		wg.Go(func() {
			for i := range rounds {
				for j, a := range all {
					strike(t, l, (i+j+worker)%2 == 0, own, a)
				}
			}
		})
	}
	served := 0
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for over := false; !over || served < 3; {
		if err := honest(); err != nil {
			t.Errorf("a genuine TLCP client beside the attack: %v", err)
			break
		}
		served++
		select {
		case <-done:
			over = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	<-done
	took := time.Since(began)
	n, p50, p99 := rest()
	t.Logf("%d attacks in %v; beside them %d TLS requests, p50 %v, p99 %v, and %d TLCP requests", 4*rounds*len(all), took.Round(time.Millisecond), n, p50, p99, served)
	testbed.Eventually(t, 30*time.Second, "goroutines and descriptors are given back", func() bool {
		return gauge(t, l.Metrics, "go_goroutines") <= goroutines+10 && gauge(t, l.Metrics, "process_open_fds") <= fds+10
	})
	grown := gauge(t, l.Metrics, "process_resident_memory_bytes") - memory
	t.Logf("goroutines %v before, %v after; descriptors %v, %v; memory grew by %.1f MiB",
		goroutines, gauge(t, l.Metrics, "go_goroutines"), fds, gauge(t, l.Metrics, "process_open_fds"), grown/(1<<20))
	if grown > 64<<20 {
		t.Errorf("memory grew by %.1f MiB", grown/(1<<20))
	}
}
