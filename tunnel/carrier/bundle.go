package carrier

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/tunnel/mux"
	"github.com/yumen-zt/yumen/wire"
)

// Bundle is the agent's end of a tunnel with several connections: what is lost
// on one of them delays its own flows alone. A flow stays on the connection that
// it was opened on; the tunnel lives as long as one of them does, and others are
// made anew. Make it with [NewBundle]. Its methods may be called from any
// goroutine.
type Bundle struct {
	cfg    BundleConfig
	ctx    context.Context // of the goroutines; ended by Close
	cancel context.CancelFunc
	all    sync.WaitGroup
	done   chan struct{} // closed when the last connection has ended
	lost   chan struct{} // of capacity 1: a connection has ended

	mu    sync.Mutex
	live  []*Client // guarded by mu; the oldest first
	over  bool      // guarded by mu
	err   error     // guarded by mu; of the last one
	token string    // guarded by mu; the last that the gateway accepted
}

// BundleConfig is what [NewBundle] needs.
type BundleConfig struct {
	Connections int // at once; required
	// Join makes another connection and says hello there, with this token; it
	// returns when the gateway has accepted. Required.
	Join  func(ctx context.Context, token string) (*Client, error)
	Token string        // of the first connection's hello
	Wait  time.Duration // before the next attempt, at first; default 1 s
}

// How long attempts to join wait at most, and how long a renewal waits for one
// connection before it asks on another, too.
const (
	joinWait    = time.Second
	joinMost    = 30 * time.Second
	joinTimeout = 5 * time.Second
	renewHedge  = 500 * time.Millisecond
)

// NewTunnelName returns what the hellos of a tunnel's connections call it.
func NewTunnelName() []byte {
	b := make([]byte, 16)
	_, _ = crand.Read(b) // never fails
	return b
}

// NewBundle returns the tunnel whose first connection is c, and makes the others
// by itself.
func NewBundle(c *Client, cfg BundleConfig) *Bundle {
	cfg.Wait = cmp.Or(cfg.Wait, joinWait)
	b := &Bundle{cfg: cfg, token: cfg.Token, done: make(chan struct{}), lost: make(chan struct{}, 1)}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.add(c)
	b.all.Go(b.keep)
	return b
}

// add takes c in, unless the tunnel is over.
func (b *Bundle) add(c *Client) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over || b.ctx.Err() != nil {
		return false
	}
	b.live = append(b.live, c)
	b.all.Go(func() { b.watch(c) })
	return true
}

// watch waits for the end of c.
func (b *Bundle) watch(c *Client) {
	<-c.Done()
	b.mu.Lock()
	b.live = slices.DeleteFunc(b.live, func(o *Client) bool { return o == c })
	if len(b.live) == 0 && !b.over {
		b.over, b.err = true, c.Err()
		b.cancel()
		close(b.done)
	}
	b.mu.Unlock()
	select {
	case b.lost <- struct{}{}:
	default: // keep is told already
	}
	_ = c.Close()
}

// keep makes the connections that are missing.
func (b *Bundle) keep() {
	wait := b.cfg.Wait
	for {
		b.mu.Lock()
		missing, token := b.cfg.Connections-len(b.live), b.token
		b.mu.Unlock()
		next := time.Duration(-1)
		if missing > 0 {
			if b.join(token) {
				wait = b.cfg.Wait
				continue
			}
			next, wait = wait/2+rand.N(wait/2+1), min(2*wait, joinMost)
		}
		if !b.pause(next) {
			return
		}
	}
}

func (b *Bundle) join(token string) bool {
	ctx, cancel := context.WithTimeout(b.ctx, joinTimeout)
	defer cancel()
	c, err := b.cfg.Join(ctx, token)
	if err != nil {
		return false
	}
	if !b.add(c) {
		_ = c.Close()
	}
	return true
}

// pause waits d, or without one until a connection ends. It is false when the
// tunnel is over.
func (b *Bundle) pause(d time.Duration) bool {
	var timer <-chan time.Time
	lost := b.lost
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer, lost = t.C, nil
	}
	select {
	case <-b.ctx.Done():
		return false
	case <-timer:
	case <-lost:
	}
	return b.ctx.Err() == nil
}

// clients returns the living connections, those with the fewest flows first.
func (b *Bundle) clients() []*Client {
	b.mu.Lock()
	out := slices.Clone(b.live)
	b.mu.Unlock()
	load := make(map[*Client]int, len(out))
	for _, c := range out {
		load[c] = c.Stats().Flows
	}
	slices.SortStableFunc(out, func(x, y *Client) int { return load[x] - load[y] })
	return out
}

// Open is [Client.Open] on the connection with the fewest flows. It asks on
// another one when that ends before the answer.
func (b *Bundle) Open(ctx context.Context, network string, m *wire.AccessRequest) (f net.Conn, err error) {
	err = b.Err()
	for _, c := range b.clients() {
		if f, err = c.Open(ctx, network, m); err == nil || c.Err() == nil {
			return f, err
		}
	}
	if err == nil {
		err = net.ErrClosed
	}
	return nil, err
}

// Renew is [Client.Renew]. A connection that gives no reply within half a second
// is not waited for alone: a silent path must not cost the tunnel.
func (b *Bundle) Renew(ctx context.Context, m *wire.Renewal) error {
	clients := b.clients()
	if len(clients) == 0 {
		return cmp.Or(b.Err(), error(net.ErrClosed))
	}
	ctx, cancel := context.WithCancel(ctx)
	replies := make(chan error, len(clients))
	ask := func(c *Client) { replies <- c.Renew(ctx, m) }
	next, waiting := 1, 1
	defer func() {
		for cancel(); waiting > 0; waiting-- {
			<-replies
		}
	}()
	go ask(clients[0])
	hedge := time.NewTimer(renewHedge)
	defer hedge.Stop()
	for {
		select {
		case err := <-replies:
			waiting--
			if _, refused := err.(*RefusedError); err == nil || refused || next == len(clients) && waiting == 0 {
				if err == nil {
					b.mu.Lock()
					b.token = m.AuthToken
					b.mu.Unlock()
				}
				return err
			}
		case <-hedge.C:
		}
		if next < len(clients) {
			go ask(clients[next])
			next, waiting = next+1, waiting+1
			hedge.Reset(renewHedge)
		}
	}
}

// Done is closed when the last connection has ended; Err then says why.
func (b *Bundle) Done() <-chan struct{} { return b.done }

// Err returns nil while the tunnel lives, then why its last connection ended.
func (b *Bundle) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// Close ends the tunnel with all its flows, and waits for its goroutines.
func (b *Bundle) Close() error {
	b.mu.Lock()
	b.cancel() // none is added from now on
	b.mu.Unlock()
	for _, c := range b.clients() {
		_ = c.Close()
	}
	b.all.Wait()
	return nil
}

// Stats returns a picture of the whole tunnel, and the number of its connections.
func (b *Bundle) Stats() (s mux.Stats, connections int) {
	clients := b.clients()
	for _, c := range clients {
		x := c.Stats()
		s.Flows, s.Credit, s.Sent, s.Dropped = s.Flows+x.Flows, s.Credit+x.Credit, s.Sent+x.Sent, s.Dropped+x.Dropped
	}
	return s, len(clients)
}
