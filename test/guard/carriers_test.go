package guard

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/yumen-zt/yumen/bpf"
	"github.com/yumen-zt/yumen/crypto/permit"
	"github.com/yumen-zt/yumen/tunnel/spa"
)

// selfSigned is for an engine that authenticates nobody here.
func selfSigned(t testing.TB) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"echo"}}
}

// quicEcho serves streams that come back on c.
func quicEcho(t testing.TB, c net.PacketConn) {
	t.Helper()
	tr := &quic.Transport{Conn: c}
	ln, err := tr.Listen(selfSigned(t), &quic.Config{InitialPacketSize: 1200, MaxIdleTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close(); c.Close() })
	go func() {
		for {
			conn, err := ln.Accept(context.Background())
			if err != nil {
				return
			}
			go func() {
				for {
					s, err := conn.AcceptStream(context.Background())
					if err != nil {
						return
					}
					go func() { _, _ = io.Copy(s, s); s.Close() }()
				}
			}()
		}
	}()
}

// quicDial connects from n with quic-go as it is; pass nil: without a token.
func (n *netns) quicDial(t testing.TB, d *spa.Dialer, pass *spa.Pass, to string, limit time.Duration) (conn *quic.Conn, err error) {
	t.Helper()
	n.in(t, func() {
		var udp *net.UDPConn
		if udp, err = net.ListenUDP("udp", &net.UDPAddr{}); err != nil {
			return
		}
		tr := &quic.Transport{Conn: udp}
		if pass != nil {
			tr.Conn = d.PacketConn(udp, pass)
		}
		t.Cleanup(func() { tr.Close(); udp.Close() })
		addr, e := net.ResolveUDPAddr("udp", to)
		if e != nil {
			t.Error(e)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		conn, err = tr.Dial(ctx, addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"echo"}}, &quic.Config{InitialPacketSize: 1200, MaxIdleTimeout: time.Minute})
	})
	return conn, err
}

// quicSays sends a word on a stream of its own and demands it back.
func quicSays(t testing.TB, what string, c *quic.Conn, word []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := c.OpenStreamSync(ctx)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	_ = s.SetDeadline(time.Now().Add(20 * time.Second))
	go func() { _, _ = s.Write(word); s.Close() }()
	if b, err := io.ReadAll(s); err != nil || !bytes.Equal(b, word) {
		t.Errorf("%s: %d of %d bytes: %v", what, len(b), len(word), err)
	}
}

// door is a bare guard before two engines that know nothing of it.
type door struct {
	*network
	g       *bpf.Guard
	ticket  permit.Ticket
	pass    *spa.Pass
	streams chan []byte // the first 20 bytes of each TCP stream
}

func newDoor(t *testing.T, mode string) *door {
	t.Helper()
	d := &door{network: newNetwork(t), streams: make(chan []byte, 16)}
	var err error
	d.g, err = bpf.Open(bpf.Config{
		Interface: "g0", Mode: bpf.Mode(mode), TokenUDP: []uint16{hidden}, UDP: []uint16{published}, Rate: bpf.Rate{PerSecond: 50, Burst: 20}, SYNToken: true, KnockPort: knockPort, PinDir: t.TempDir(), Uses: bpf.Rate{PerSecond: 1000, Burst: 1000},
		Sizes: bpf.Sizes{Denied: 64, Networks: 64, Tickets: 64, Openings: 256, Sources: 64},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.g.Close() })
	if err := d.g.Attach(); err != nil {
		t.Fatal(err)
	}
	d.ticket = permit.NewRoot().Times(time.Now(), time.Hour)[0].Ticket("GW", "DEV")
	d.pass = &spa.Pass{Port: knockPort, SYN: true, Tickets: []permit.Ticket{d.ticket}}
	d.count(t, time.Hour)
	for _, host := range []string{gw4, gw6} {
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addrPort(host, hidden)))
		if err != nil {
			t.Fatal(err)
		}
		quicEcho(t, udp)
		ln, err := net.Listen("tcp", at(host, hidden))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					token := make([]byte, spa.TokenBytes)
					if _, err := io.ReadFull(c, token); err != nil {
						c.Close()
						return
					}
					d.streams <- token
					pipe(c, c)
				}()
			}
		}()
	}
	return d
}

// count lets the ticket count for so long, anew.
func (d *door) count(t testing.TB, for_ time.Duration) {
	t.Helper()
	if err := d.g.RemoveTicket(d.ticket.Alias); err != nil {
		t.Fatal(err)
	}
	if err := d.g.AddTicket(bpf.Ticket{Alias: d.ticket.Alias, Key: d.ticket.Gate, Until: bpf.Now() + for_, Port: hidden, Knock: true}); err != nil {
		t.Fatal(err)
	}
}

func (d *door) counter(t testing.TB, v bpf.Verdict) uint64 {
	t.Helper()
	c, err := d.g.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return c[bpf.IPv4][v] + c[bpf.IPv6][v]
}

// counters says what the guard has judged.
func (d *door) counters(t testing.TB) (s string) {
	t.Helper()
	c, err := d.g.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for f := range c {
		for v, n := range c[f] {
			if n > 0 {
				s += fmt.Sprint(bpf.Family(f), " ", bpf.Verdict(v), " ", n, "; ")
			}
		}
	}
	return s
}

// refused demands that try gets no answer, for the verdict v; where v is
// DropUnauthorized, an unknown ticket does: sealed bytes may look like one.
func (d *door) refused(t *testing.T, what string, v bpf.Verdict, try func() error) {
	t.Helper()
	count := func() uint64 {
		n := d.counter(t, v)
		if v == bpf.DropUnauthorized {
			n += d.counter(t, bpf.DropTicketUnknown)
		}
		return n
	}
	was := count()
	if err := try(); err == nil {
		t.Errorf("%s: got in", what)
	}
	if count() == was {
		t.Errorf("%s: nothing was dropped as %v", what, v)
	}
}

// limited demands that the rate of a source holds at a published port.
func (d *door) limited(t *testing.T) {
	t.Helper()
	sink, err := net.ListenPacket("udp", at(gw4, published))
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan int)
	go func() {
		b := make([]byte, 64)
		for n := 0; ; n++ {
			if _, _, err := sink.ReadFrom(b); err != nil {
				heard <- n
				return
			}
		}
	}()
	start := time.Now()
	d.r.in(t, func() {
		c, err := net.Dial("udp", sink.LocalAddr().String())
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for range 1000 {
			_, _ = c.Write([]byte("x")) // the sink counts
		}
	})
	most := 20 + int(time.Since(start)/(20*time.Millisecond)) + 2
	time.Sleep(100 * time.Millisecond)
	sink.Close()
	if n := <-heard; n < 20 || n > most {
		t.Errorf("of 1000 datagrams %d were heard, 20 to %d allowed", n, most)
	}
}

const (
	soon   = 120 * time.Millisecond // that a first packet which is let in has an answer by, many times over
	enough = 10 * time.Second
)

// A token behind the Initial of a bare quic-go, and one in the payload of a
// SYN, each opens one 5-tuple through the real guard, from behind a NAT, over a
// path of 1,280 bytes; nothing else does (S20, S38).
func TestS20_S38_TokenInTheFirstPacket(t *testing.T) {
	modes(t, func(t *testing.T, mode string) {
		if mode == "nftables" {
			t.Skip("nftables reads tokens in user space: TestS38_TiersAgree")
		}
		d := newDoor(t, mode)
		client := &spa.Dialer{Ways: []spa.Way{spa.SYN}}
		syn := func(n *netns, client *spa.Dialer, pass *spa.Pass, to string, limit time.Duration) (c net.Conn, err error) {
			n.in(t, func() {
				ctx, cancel := context.WithTimeout(context.Background(), limit)
				defer cancel()
				var way spa.Way
				if c, way, err = client.Dial(ctx, pass, to); err == nil && way != spa.SYN {
					t.Errorf("the way was %q", way)
				}
			})
			return c, err
		}
		bySYN := func(n *netns, client *spa.Dialer, pass *spa.Pass, to string) func() error {
			return func() error {
				c, err := syn(n, client, pass, to, soon)
				if err == nil {
					c.Close()
				}
				return err
			}
		}
		byQUIC := func(n *netns, client *spa.Dialer, pass *spa.Pass, to string) func() error {
			return func() error { _, err := n.quicDial(t, client, pass, to, soon); return err }
		}

		d.refused(t, "QUIC without a token", bpf.DropUnauthorized, byQUIC(d.a, nil, nil, at(gw4, hidden)))
		start := time.Now()
		q, err := d.a.quicDial(t, client, d.pass, at(gw4, hidden), enough)
		if err != nil {
			t.Fatalf("QUIC with a token: %v; %s", err, d.counters(t))
		}
		t.Logf("QUIC handshake %v", time.Since(start))
		quicSays(t, "QUIC", q, bytes.Repeat([]byte("0123456789abcdef"), 16<<10))
		start = time.Now()
		c, err := syn(d.a, client, d.pass, at(gw4, hidden), enough)
		if err != nil {
			t.Fatalf("TCP with a token: %v; %s", err, d.counters(t))
		}
		t.Logf("TCP handshake %v", time.Since(start))
		defer c.Close()
		echoed(t, "TCP", c, bytes.Repeat([]byte("0123456789abcdef"), 16<<10))
		if token := <-d.streams; !bytes.Equal(token[:8], d.ticket.Alias[:]) {
			t.Errorf("the stream begins with % x", token)
		}
		for _, n := range []*netns{d.b, d.r} {
			d.refused(t, "QUIC of "+n.name+" beside an open flow", bpf.DropUnauthorized, byQUIC(n, nil, nil, at(gw4, hidden)))
			n.shut(t, "beside an open connection", at(gw4, hidden))
		}
		if q6, err := d.r.quicDial(t, client, d.pass, at(gw6, hidden), enough); err != nil {
			t.Errorf("QUIC over IPv6: %v", err)
		} else {
			quicSays(t, "QUIC over IPv6", q6, []byte("six"))
		}
		if c6, err := syn(d.r, client, d.pass, at(gw6, hidden), enough); err != nil {
			t.Errorf("TCP over IPv6: %v", err)
		} else {
			echoed(t, "TCP over IPv6", c6, []byte("six"))
			c6.Close()
		}

		// Two dialers whose clock stands make the same tokens: one was caught.
		moment := time.Now().Add(time.Second)
		still := func() *spa.Dialer {
			return &spa.Dialer{Ways: []spa.Way{spa.SYN}, Now: func() time.Time { return moment }}
		}
		if c, err := syn(d.a, still(), d.pass, at(gw4, hidden), enough); err != nil {
			t.Errorf("a token of its time: %v", err)
		} else {
			c.Close()
		}
		d.refused(t, "the same SYN from behind the same address", bpf.DropTokenReplayed, bySYN(d.b, still(), d.pass, at(gw4, hidden)))
		d.refused(t, "the same token in another SYN", bpf.DropTokenReplayed, bySYN(d.a, still(), d.pass, at(gw4, hidden)))
		moment = moment.Add(time.Second)
		if _, err := d.a.quicDial(t, still(), d.pass, at(gw4, hidden), enough); err != nil {
			t.Errorf("a token of its time: %v", err)
		}
		d.refused(t, "the same Initial from behind the same address", bpf.DropTokenReplayed, byQUIC(d.b, still(), d.pass, at(gw4, hidden)))
		d.refused(t, "a SYN of the same moment", bpf.DropTokenReplayed, bySYN(d.b, still(), d.pass, at(gw4, hidden)))

		forged := d.ticket
		forged.Gate[0] ^= 1
		unknown := d.ticket
		unknown.Alias[7] ^= 1
		for what, k := range map[string]struct {
			ticket permit.Ticket
			v      bpf.Verdict
		}{"forged": {forged, bpf.DropTokenForged}, "of an unknown ticket": {unknown, bpf.DropTicketUnknown}} {
			pass := &spa.Pass{Port: knockPort, SYN: true, Tickets: []permit.Ticket{k.ticket}}
			d.refused(t, what+", in a SYN", k.v, bySYN(d.a, client, pass, at(gw4, hidden)))
			d.refused(t, what+", behind an Initial", k.v, byQUIC(d.a, client, pass, at(gw4, hidden)))
		}
		d.refused(t, "for another port, in a SYN", bpf.DropTicketPort, bySYN(d.a, client, d.pass, at(gw4, 2222)))
		d.refused(t, "for another port, behind an Initial", bpf.DropUnauthorized, byQUIC(d.a, client, d.pass, at(gw4, 2222)))

		// One delete closes what a ticket opened: the flow that runs, too.
		busy, stop := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(busy)
			s, err := q.OpenStream()
			if err != nil {
				return
			}
			_ = s.SetWriteDeadline(time.Now().Add(20 * time.Second))
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := s.Write(make([]byte, 100)); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		for was := d.counter(t, bpf.PassFlow); d.counter(t, bpf.PassFlow) < was+20; time.Sleep(time.Millisecond) {
		}
		if err := d.g.RemoveTicket(d.ticket.Alias); err != nil {
			t.Fatal(err)
		}
		gone := time.Now()
		time.Sleep(20 * time.Millisecond)
		was, late := d.counter(t, bpf.PassFlow), time.Since(gone)
		time.Sleep(100 * time.Millisecond)
		if now := d.counter(t, bpf.PassFlow); now != was {
			t.Errorf("%d packets of a flow passed later than %v after its ticket was taken away", now-was, late)
		}
		close(stop)
		<-busy

		d.limited(t)

		d.count(t, time.Millisecond)
		time.Sleep(10 * time.Millisecond)
		d.refused(t, "expired, in a SYN", bpf.DropTicketExpired, bySYN(d.a, client, d.pass, at(gw4, hidden)))
		d.refused(t, "expired, behind an Initial", bpf.DropTicketExpired, byQUIC(d.a, client, d.pass, at(gw4, hidden)))
	})
}
