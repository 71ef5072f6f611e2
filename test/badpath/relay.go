package badpath

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// RelayConfig chooses a path. The zero value is one without delay and loss.
type RelayConfig struct {
	Target string        // host:port; required
	Delay  time.Duration // of each direction
	Loss   float64       // share of segments that are lost
	Seed   uint64        // of the losses
}

// What a path is modelled by. A segment that is lost comes one retransmission
// time-out later, and everything behind it on its connection waits: the round
// trip and 200 ms, as RFC 6298 has it on Linux for a path without jitter; twice
// that when the repeat is lost, too, and so on. TCP often knows better (fast
// retransmit, tail loss probes): the model is the worse case. A lost SYN costs
// 1 s, then 2 s (RFC 6298 §2).
const (
	segment   = 1448 // bytes of payload
	leastWait = 200 * time.Millisecond
	synWait   = time.Second
	inFlight  = 1024 // chunks of one direction
)

// Dial connects from one of many loopback addresses, at random: a server that
// bounds what comes from one address sees as many sources as there are parties
// elsewhere.
func Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	if host, _, err := net.SplitHostPort(addr); err == nil && host == "127.0.0.1" {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+rand.N(100)), byte(1+rand.N(250)))}
	}
	return d.DialContext(ctx, network, addr)
}

// Relay is a path to one address, with delay and loss. Its methods may be
// called from any goroutine.
type Relay struct {
	cfg RelayConfig
	ln  net.Listener
	all sync.WaitGroup

	mu    sync.Mutex
	rand  *rand.Rand        // guarded by mu
	conns map[net.Conn]bool // guarded by mu; nil: closed
	lost  int               // guarded by mu
}

// NewRelay makes a path. Close ends it.
func NewRelay(c RelayConfig) (*Relay, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("make relay: %w", err)
	}
	r := &Relay{cfg: c, ln: ln, rand: rand.New(rand.NewPCG(c.Seed, 2)), conns: map[net.Conn]bool{}}
	r.all.Go(r.accept)
	return r, nil
}

// Dial connects over the path, whatever the address: after the round trip that
// TCP's handshake takes.
func (r *Relay) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	wait := 2 * r.cfg.Delay
	for again := synWait; r.drop(); again *= 2 {
		wait += again
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
	case <-t.C:
	}
	return new(net.Dialer).DialContext(ctx, "tcp", r.ln.Addr().String())
}

// Lost returns how many segments, and SYNs, were lost.
func (r *Relay) Lost() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

// Close breaks every connection and waits for the relay's goroutines.
func (r *Relay) Close() {
	r.ln.Close()
	r.mu.Lock()
	for c := range r.conns {
		c.Close()
	}
	r.conns = nil
	r.mu.Unlock()
	r.all.Wait()
}

// drop draws whether a segment is lost.
func (r *Relay) drop() bool {
	if r.cfg.Loss == 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rand.Float64() >= r.cfg.Loss {
		return false
	}
	r.lost++
	return true
}

// hold keeps c for Close. It reports false after it.
func (r *Relay) hold(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		c.Close()
		return false
	}
	r.conns[c] = true
	return true
}

func (r *Relay) letGo(c net.Conn) {
	c.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

func (r *Relay) accept() {
	for {
		near, err := r.ln.Accept()
		if err != nil {
			return
		}
		r.all.Go(func() { r.serve(near) })
	}
}

// serve carries one connection until both directions have ended.
func (r *Relay) serve(near net.Conn) {
	if !r.hold(near) {
		return
	}
	defer r.letGo(near)
	far, err := Dial(context.Background(), "tcp", r.cfg.Target)
	if err != nil || !r.hold(far) {
		return // the peer is told by the end of near
	}
	defer r.letGo(far)
	var both sync.WaitGroup
	both.Go(func() { r.carry(far, near) })
	both.Go(func() { r.carry(near, far) })
	both.Wait()
}

// chunk is something on its way. Without data it is the end.
type chunk struct {
	data []byte
	at   time.Time // of its arrival
}

// carry carries one direction, each chunk at its time and in order.
func (r *Relay) carry(to, from net.Conn) {
	way := make(chan chunk, inFlight)
	var done sync.WaitGroup
	done.Go(func() {
		for c := range way {
			time.Sleep(time.Until(c.at))
			if c.data == nil {
				to.(*net.TCPConn).CloseWrite()
			} else if _, err := to.Write(c.data); err != nil {
				from.Close() // nothing more is wanted
			}
		}
	})
	var last time.Time
	arrival := func(segments int) time.Time {
		now := time.Now().Add(r.cfg.Delay)
		at := now
		for range segments { // sent together, so repeated together
			own := now
			for wait := 2*r.cfg.Delay + leastWait; r.drop(); wait *= 2 {
				own = own.Add(wait)
			}
			if own.After(at) {
				at = own
			}
		}
		if at.Before(last) {
			at = last
		}
		last = at
		return at
	}
	buf := make([]byte, 16*segment)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			way <- chunk{append([]byte(nil), buf[:n]...), arrival((n + segment - 1) / segment)}
		}
		if err == io.EOF {
			way <- chunk{nil, arrival(0)}
		}
		if err != nil {
			break
		}
	}
	close(way)
	done.Wait()
}
