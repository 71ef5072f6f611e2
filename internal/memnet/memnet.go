// Package memnet is a network in memory for tests: connections like those of
// TCP, with delay, loss and partition. It starts no goroutine and waits on
// channels and timers alone, so that in a bubble of testing/synctest hours on it
// pass in milliseconds.
//
// Loss is what a user of TCP sees of it: a chunk that is lost comes a
// retransmission later, and what was written behind it waits. In a partition
// nothing arrives; what was written arrives after it, as by retransmission.
// Start reading at [Network].
package memnet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Config chooses a network. The zero value is one without delay and loss.
type Config struct {
	Delay time.Duration // of each direction
	Loss  float64       // share of chunks that come a retransmission later
	Seed  uint64        // of the losses
}

// retransmit is the least time until something lost or held back comes again.
const retransmit = 200 * time.Millisecond

// Network is a network. Its methods may be called from any goroutine.
type Network struct {
	mu        sync.Mutex
	cfg       Config               // guarded by mu
	rand      *rand.Rand           // guarded by mu
	listeners map[string]*listener // guarded by mu; by address
	conns     map[*Conn]bool       // guarded by mu; both ends
	healed    chan struct{}        // guarded by mu; nil: whole; closed at the end of the partition
	ports     int                  // guarded by mu
	dials     int                  // guarded by mu
}

// New returns a network.
func New(c Config) *Network {
	return &Network{cfg: c, rand: rand.New(rand.NewPCG(c.Seed, 1)), listeners: map[string]*listener{}, conns: map[*Conn]bool{}, ports: 40000}
}

// Set changes delay and loss for what is written from now on.
func (n *Network) Set(delay time.Duration, loss float64) {
	n.mu.Lock()
	n.cfg.Delay, n.cfg.Loss = delay, loss
	n.mu.Unlock()
}

// Partition cuts the network in two, listeners here and diallers there, until
// Heal. Connections live on, and nobody is told.
func (n *Network) Partition() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.healed == nil {
		n.healed = make(chan struct{})
	}
}

// Heal ends a partition. What was held back arrives after a retransmission.
func (n *Network) Heal() {
	n.mu.Lock()
	healed := n.healed
	n.healed = nil
	var conns []*Conn
	for c := range n.conns {
		conns = append(conns, c)
	}
	wait := n.cfg.Delay + retransmit
	n.mu.Unlock()
	if healed == nil {
		return
	}
	close(healed)
	for _, c := range conns {
		c.in.release(wait)
	}
}

// Cut breaks every connection, as a reset does.
func (n *Network) Cut() {
	n.mu.Lock()
	var conns []*Conn
	for c := range n.conns {
		conns = append(conns, c)
	}
	n.mu.Unlock()
	for _, c := range conns {
		c.in.end(errReset)
	}
}

// Vanish makes the packets of every connection that is open now vanish, for
// ever and silently. New ones are sound. It returns how many there were.
func (n *Network) Vanish() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		c.vanished = true
	}
	return len(n.conns) / 2
}

// Dials returns how many connections were asked for.
func (n *Network) Dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

var (
	errReset   = errors.New("connection reset by peer")
	errRefused = errors.New("connection refused")
)

// Addr is an address of the network.
type Addr struct{ Net, Name string }

// Network returns the network's name.
func (a Addr) Network() string { return a.Net }

// String returns the address.
func (a Addr) String() string { return a.Name }

type listener struct {
	n      *Network
	addr   Addr
	queue  chan *Conn
	closed chan struct{}
	once   sync.Once
}

// Listen returns a listener at address, of any network name.
func (n *Network) Listen(network, address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: fmt.Errorf("%s: address already in use", address)}
	}
	l := &listener{n: n, addr: Addr{network, address}, queue: make(chan *Conn, 128), closed: make(chan struct{})}
	n.listeners[address] = l
	return l, nil
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.n.mu.Lock()
		delete(l.n.listeners, l.addr.Name)
		l.n.mu.Unlock()
		close(l.closed)
	})
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }

// Dial connects to a listener; a handshake takes one round trip. Nobody at the
// address refuses after it; in a partition nobody answers.
func (n *Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: Addr{network, address}, Err: err}
	}
	n.mu.Lock()
	n.dials++
	n.mu.Unlock()
	for {
		n.mu.Lock()
		healed, trip := n.healed, 2*n.cfg.Delay
		if n.lost() {
			trip += time.Second // of a SYN
		}
		n.mu.Unlock()
		wait := time.NewTimer(trip)
		var whole <-chan struct{}
		if healed != nil {
			wait.Stop()
			whole = healed
		}
		select {
		case <-ctx.Done():
			wait.Stop()
			return fail(ctx.Err())
		case <-whole: // the next SYN gets through
			continue
		case <-wait.C:
		}
		break
	}
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	if l == nil {
		return fail(errRefused)
	}
	ours, theirs := n.pair(network, address)
	select {
	case l.queue <- theirs:
		return ours, nil
	case <-l.closed:
		ours.Close()
		return fail(errRefused)
	case <-ctx.Done():
		ours.Close()
		return fail(ctx.Err())
	}
}

// lost draws whether a chunk is lost. The caller holds mu.
func (n *Network) lost() bool { return n.cfg.Loss > 0 && n.rand.Float64() < n.cfg.Loss }

func (n *Network) pair(network, address string) (dialler, accepted *Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports++
	here, there := Addr{network, fmt.Sprintf("127.0.0.1:%d", n.ports)}, Addr{network, address}
	a := &Conn{n: n, local: here, remote: there, in: newFlow()}
	b := &Conn{n: n, local: there, remote: here, in: newFlow()}
	a.peer, b.peer = b, a
	n.conns[a], n.conns[b] = true, true
	return a, b
}

// send says when what is written now arrives: in, or never, or when the
// partition ends.
func (c *Conn) send() (in time.Duration, never, held bool) {
	n := c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	in = n.cfg.Delay
	if n.lost() {
		in += max(retransmit, 2*n.cfg.Delay)
	}
	return in, c.vanished, n.healed != nil
}
