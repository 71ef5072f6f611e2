package mux

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// raw speaks records by hand to a gateway's end, or an agent's.
type raw struct {
	t    *testing.T
	conn net.Conn
	s    *Session
	h    *acceptor
	err  error
	wg   sync.WaitGroup
	got  []byte // what the session said, until it ended
}

func newRaw(t *testing.T, agent bool, c Config) *raw {
	a, b := net.Pipe()
	r := &raw{t: t, conn: a, h: newAcceptor()}
	c.Handler = r.h
	if agent {
		r.s = Client(b, c)
	} else {
		r.s = Server(b, c)
	}
	r.wg.Go(func() { r.err = r.s.Run(context.Background()) })
	r.wg.Go(func() { r.got, _ = io.ReadAll(a) })
	return r
}

func (r *raw) send(k Kind, flags uint8, flow uint32, payload ...byte) bool {
	_, err := r.conn.Write(appendRecord(nil, k, flags, flow, payload))
	return err == nil
}

// end closes the connection, when the session has not, and returns the last
// record that it said and why it ended.
func (r *raw) end(hangUp bool) (last []byte, why reason.Reason) {
	if hangUp {
		r.conn.Close()
	}
	r.wg.Wait()
	r.conn.Close()
	var ce *ClosedError
	if !errors.As(r.err, &ce) {
		r.t.Fatalf("Run returned %v", r.err)
	}
	if n := len(r.got); n >= 10 {
		last = r.got[n-10:]
	}
	return last, ce.Reason
}

func TestFaultsEndTheTunnel(t *testing.T) {
	openOne := func(r *raw) { r.send(Open, 0, 1, 0, 0, 0, 0) }
	openUDP := func(r *raw) { r.send(Open, 1, 1, 0, 0, 0, 0) }
	many := func(n int, f func()) {
		for range n {
			f()
		}
	}
	for _, c := range []struct {
		name string
		do   func(r *raw)
		want reason.Reason
	}{
		{"kind 0", func(r *raw) { r.send(0, 0, 0) }, reason.FrameMalformed},
		{"kind 8", func(r *raw) { r.send(8, 0, 0) }, reason.FrameMalformed},
		{"unknown flag", func(r *raw) { r.send(Open, 2, 1, 0, 0, 0, 0) }, reason.FrameMalformed},
		{"OPEN too short", func(r *raw) { r.send(Open, 0, 1, 0, 0, 0) }, reason.FrameMalformed},
		{"OPEN too long", func(r *raw) { r.send(Open, 0, 1, make([]byte, MaxOpen+1)...) }, reason.FrameMalformed},
		{"OPEN of flow 0", func(r *raw) { r.send(Open, 0, 0, 0, 0, 0, 0) }, reason.FrameMalformed},
		{"OPEN of a window beyond the most", func(r *raw) { r.send(Open, 0, 1, 0x80, 0, 0, 0) }, reason.FrameMalformed},
		{"OPEN twice", func(r *raw) { openOne(r); openOne(r) }, reason.FrameMalformed},
		{"OPEN of a lower id", func(r *raw) { r.send(Open, 0, 9, 0, 0, 0, 0); r.send(Open, 0, 8, 0, 0, 0, 0) }, reason.FrameMalformed},
		{"DATA of no flow", func(r *raw) { r.send(Data, 0, 1, 'x') }, reason.FrameMalformed},
		{"DATA of flow 0", func(r *raw) { r.send(Data, 0, 0, 'x') }, reason.FrameMalformed},
		{"DATA of nothing", func(r *raw) { openOne(r); r.send(Data, 0, 1) }, reason.FrameMalformed},
		{"DATA before the answer", func(r *raw) { r.h.hold = true; openOne(r); r.send(Data, 0, 1, 'x') }, reason.FrameMalformed},
		{"DATA after the end", func(r *raw) { openOne(r); r.send(Close, 0, 1, 0, 0); r.send(Data, 0, 1, 'x') }, reason.FrameMalformed},
		{"DATA on an association", func(r *raw) { openUDP(r); r.send(Data, 0, 1, 'x') }, reason.FrameMalformed},
		{"DATAGRAM on a stream", func(r *raw) { openOne(r); r.send(Datagram, 0, 1, 'x') }, reason.FrameMalformed},
		{"DATAGRAM too long", func(r *raw) { openUDP(r); r.send(Datagram, 0, 1, make([]byte, MaxDatagram+1)...) }, reason.FrameMalformed},
		{"DATA beyond the credit", func(r *raw) {
			openOne(r)
			many(65, func() { r.send(Data, 0, 1, make([]byte, 16<<10)...) })
		}, reason.BudgetExceeded},
		{"end twice", func(r *raw) { openOne(r); r.send(Close, 0, 1, 0, 0); r.send(Close, 0, 1, 0, 0) }, reason.FrameMalformed},
		{"end of no flow", func(r *raw) { r.send(Close, 0, 5, 0, 0) }, reason.FrameMalformed},
		{"WINDOW of 0", func(r *raw) { openOne(r); r.send(Window, 0, 1, 0, 0, 0, 0) }, reason.FrameMalformed},
		{"WINDOW beyond the most", func(r *raw) {
			openOne(r)
			r.send(Window, 0, 1, 0x7f, 0xff, 0xff, 0xff)
			r.send(Window, 0, 1, 0, 0, 0, 1)
		}, reason.FrameMalformed},
		{"WINDOW of 2^32-1", func(r *raw) { openOne(r); r.send(Window, 0, 1, 255, 255, 255, 255) }, reason.FrameMalformed},
		{"MESSAGE of a flow", func(r *raw) { r.send(Message, 0, 1, 'x') }, reason.FrameMalformed},
		{"MESSAGE too long", func(r *raw) { r.send(Message, 0, 0, make([]byte, MaxMessage+1)...) }, reason.FrameMalformed},
		{"PING too short", func(r *raw) { r.send(Ping, 0, 0, 1) }, reason.FrameMalformed},
		{"too many PING", func(r *raw) { many(17, func() { r.send(Ping, 0, 0, make([]byte, 8)...) }) }, reason.FrameRate},
		{"too many answers", func(r *raw) { many(17, func() { r.send(Ping, 1, 0, make([]byte, 8)...) }) }, reason.FrameRate},
		{"too many MESSAGE", func(r *raw) { many(65, func() { r.send(Message, 0, 0, 'x') }) }, reason.FrameRate},
		{"too many WINDOW", func(r *raw) { openOne(r); many(1025, func() { r.send(Window, 0, 1, 0, 0, 0, 1) }) }, reason.FrameRate},
		{"too many records of ended flows", func(r *raw) {
			openOne(r)
			r.send(Close, 0, 1, 0, 9)
			many(1025, func() { r.send(Close, 0, 1, 0, 9) })
		}, reason.FrameRate},
		{"too many OPEN", func(r *raw) {
			r.h.full = true
			for i := range 1025 {
				r.send(Open, 0, uint32(i+1), 0, 0, 0, 0)
			}
		}, reason.FrameRate},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRaw(t, false, Config{})
				r.s.Establish()
				c.do(r)
				last, why := r.end(false)
				if why != c.want {
					t.Errorf("ended for %v, want %v", why, c.want)
				}
				if want := appendRecord(nil, Close, 0, 0, u16(c.want)); string(last) != string(want) {
					t.Errorf("last record % x, want % x", last, want)
				}
			})
		})
	}
}

func TestAgentRefusesWhatOnlyAnAgentSays(t *testing.T) {
	for name, do := range map[string]func(r *raw){
		"OPEN unasked": func(r *raw) { r.send(Open, 0, 1, 0, 0, 0, 0, 0, 0) },
		"OPEN twice answered": func(r *raw) {
			r.send(Open, 0, 1, 0, 0, 0, 9, 0, 0)
			r.send(Open, 0, 1, 0, 0, 0, 9, 0, 0)
		},
		"datagram flag": func(r *raw) { r.send(Open, 1, 1, 0, 0, 0, 0, 0, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRaw(t, true, Config{})
				if name != "OPEN unasked" {
					if _, err := r.s.Start(false, nil); err != nil {
						t.Fatal(err)
					}
				}
				do(r)
				if _, why := r.end(false); why != reason.FrameMalformed {
					t.Errorf("ended for %v", why)
				}
			})
		})
	}
}

func TestBeforeHelloOnlyMessageAndPing(t *testing.T) {
	for _, k := range []Kind{Open, Data, Window, Close, Datagram} {
		synctest.Test(t, func(t *testing.T) {
			r := newRaw(t, false, Config{})
			r.send(Ping, 0, 0, make([]byte, 8)...)
			r.send(Message, 0, 0, 'h')
			r.send(k, 0, 1, make([]byte, map[Kind]int{Close: 2}[k]+4*(1-map[Kind]int{Close: 1}[k]))...)
			if _, why := r.end(false); why != reason.FrameMalformed {
				t.Errorf("%v before the hello: ended for %v", k, why)
			}
			if got := <-r.h.messages; got != "h" {
				t.Errorf("message %q", got)
			}
		})
	}
}

func TestHelloTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaw(t, false, Config{})
		begin := time.Now()
		// Pings do not buy time.
		r.wg.Go(func() {
			for r.send(Ping, 0, 0, make([]byte, 8)...) {
				time.Sleep(time.Second)
			}
		})
		if _, why := r.end(false); why != reason.HelloTimeout {
			t.Errorf("ended for %v", why)
		}
		// The end of the raw peer is seen by its next ping.
		if d := time.Since(begin); d < 10*time.Second || d > 11*time.Second {
			t.Errorf("ended after %v", d)
		}
	})
}

func TestDeadPeerIsNoticedWithin10s(t *testing.T) {
	for _, agent := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r := newRaw(t, agent, Config{})
			r.s.Establish()
			time.Sleep(3*time.Second + time.Millisecond)
			r.send(Ping, flagAnswer, 0, make([]byte, 8)...)
			last := time.Now()
			_, why := r.end(false)
			if d := time.Since(last); why != reason.PeerTimeout || d > 10*time.Second || d < 6*time.Second {
				t.Errorf("agent's end %v: ended for %v after %v of silence", agent, why, d)
			}
		})
	}
}

func TestPeerThatTakesNothingIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe() // a is never read
		s := Server(b, Config{Handler: newAcceptor()})
		s.Establish()
		done := make(chan error)
		go func() { done <- s.Run(context.Background()) }()
		if err := s.Send([]byte("never taken")); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { // alive in every other way
			for {
				if _, err := a.Write(appendRecord(nil, Ping, flagAnswer, 0, make([]byte, 8))); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		begin := time.Now()
		var ce *ClosedError
		if err := <-done; !errors.As(err, &ce) || ce.Reason != reason.PeerTimeout {
			t.Errorf("ended by %v", err)
		}
		if d := time.Since(begin); d > 13*time.Second {
			t.Errorf("after %v", d)
		}
		a.Close()
		wg.Wait()
	})
}

func TestIdleTunnelLivesAndSaysLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		c := &countingConn{Conn: b}
		p := newPair(t, a, c, Config{}, Config{})
		time.Sleep(time.Hour)
		if err := p.gateway.Err(); err != nil {
			t.Fatalf("an idle tunnel ended: %v", err)
		}
		// One PING and its answer each 4 s.
		if n := c.writes.Load(); n < 850 || n > 950 {
			t.Errorf("the gateway wrote %d times in an hour, want about 900", n)
		}
		p.close()
	})
}

func TestOneSidedDatagramsKeepTheTunnelAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := memPair(t, Config{})
		a, g := p.open(t, true)
		go func() {
			for {
				if _, err := a.Read(make([]byte, 16)); err != nil {
					return
				}
			}
		}()
		for range 600 { // the agent has nothing to say but PING
			if _, err := g.Write([]byte("tick")); err != nil {
				t.Fatalf("the tunnel ended: %v", err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		a.Close()
		g.Close()
		p.close()
	})
}

type countingConn struct {
	net.Conn
	writes atomic.Int64
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

func TestTunnelEndResetsEveryFlow(t *testing.T) {
	p := tcpPair(t, Config{})
	a, g := p.open(t, false)
	p.gateway.Close(reason.RenewalMissed)
	var re *ResetError
	if _, err := a.Read(make([]byte, 1)); !errors.As(err, &re) || re.Reason != reason.RenewalMissed || !re.Remote {
		t.Errorf("agent: %v", err)
	}
	if _, err := g.Read(make([]byte, 1)); !errors.As(err, &re) || re.Reason != reason.RenewalMissed {
		t.Errorf("gateway: %v", err)
	}
	a.Close()
	g.Close()
	p.wg.Wait()
	var ce *ClosedError
	if !errors.As(p.agentErr, &ce) || ce.Reason != reason.RenewalMissed || !ce.Remote {
		t.Errorf("agent's Run: %v", p.agentErr)
	}
	if _, err := p.agent.Start(false, nil); err == nil {
		t.Error("a tunnel that ended opens flows")
	}
}

func TestNothingIsTakenAfterTheEnd(t *testing.T) {
	a, b := net.Pipe()
	h := newAcceptor()
	s := Server(b, Config{Handler: h})
	s.Close(reason.TunnelLimit) // before Run: the peer's first record may be here already
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = a.Write(appendRecord(nil, Message, 0, 0, []byte("hello"))) })
	wg.Go(func() { _, _ = io.Copy(io.Discard, a) })
	var ce *ClosedError
	if err := s.Run(t.Context()); !errors.As(err, &ce) || ce.Reason != reason.TunnelLimit {
		t.Errorf("Run: %v", err)
	}
	a.Close()
	wg.Wait()
	if len(h.messages) != 0 {
		t.Error("a message was taken after the end")
	}
}

// resetConn cannot be written to, and then has the peer's last record.
type resetConn struct {
	net.Conn
	failed chan struct{}
	last   []byte
}

func (c *resetConn) Write([]byte) (int, error) {
	close(c.failed)
	return 0, syscall.ECONNRESET
}

func (c *resetConn) Read(b []byte) (int, error) {
	<-c.failed
	time.Sleep(time.Millisecond) // of the bubble
	n := copy(b, c.last)
	if c.last = c.last[n:]; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (c *resetConn) SetWriteDeadline(time.Time) error { return nil }
func (c *resetConn) Close() error                     { return nil }

// A peer that ends the tunnel with our bytes unread resets the connection behind
// its last word, which is the reason all the same.
func TestTheLastWordIsHeardBehindAReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &resetConn{failed: make(chan struct{}), last: appendRecord(nil, Close, 0, 0, u16(reason.FrameRate))}
		s := Client(c, Config{})
		ended := make(chan error, 1)
		go func() { ended <- s.Run(t.Context()) }()
		if err := s.Send([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		var why *ClosedError
		if err := <-ended; !errors.As(err, &why) || why.Reason != reason.FrameRate || !why.Remote {
			t.Errorf("ended by %v, want the peer's reason", err)
		}
	})
}
