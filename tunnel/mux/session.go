package mux

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// Session is one end of a tunnel over one carrier. Make it with [Client] or
// [Server], then call Run. The other methods may be called from any goroutine.
type Session struct {
	conn   net.Conn
	dg     datagramCarrier // conn, if it is one
	cfg    Config
	client bool

	established atomic.Bool   // the gateway's side: the hello was accepted
	alive       atomic.Bool   // a byte came since the last tick
	granted     atomic.Int64  // taken from cfg.Budget, by whoever shares ours
	budget      *atomic.Int64 // ours, or that of the session whose budget is shared
	sent        atomic.Uint64 // bytes of DATA and DATAGRAM
	dropped     atomic.Uint64 // datagrams that found their queue full
	trip        atomic.Int64  // the carrier's round trip, as it was at tripAt
	tripAt      atomic.Int64  // Unix nanoseconds
	done        chan struct{} // closed when the tunnel ends
	wg          sync.WaitGroup

	mu     sync.Mutex
	flows  map[uint32]*Flow // guarded by mu; made by the first flow
	lastID uint32           // guarded by mu; the highest id that was opened
	live   int              // guarded by mu; flows whose owner is not done
	err    *ClosedError     // guarded by mu; set once

	wr writer // write.go

	apartMu sync.Mutex // held while a datagram is put into its flow, where dg is set

	// Of the reader alone (read.go).
	hdr                      [HeaderSize]byte
	opens, pings, msgs, wins bucket
	sentSeen                 uint64 // of sent, when wins was last topped up

	// Of the keeper alone.
	silent, stuck int
	lastWrite     uint64
}

// Client returns the agent's end of a tunnel on conn, which it owns.
func Client(conn net.Conn, cfg Config) *Session { return newSession(conn, cfg, true) }

// Server returns the gateway's end of a tunnel on conn, which it owns. Until
// Establish, the peer may send MESSAGE and PING alone.
func Server(conn net.Conn, cfg Config) *Session { return newSession(conn, cfg, false) }

func newSession(conn net.Conn, cfg Config, client bool) *Session {
	cfg.setDefaults()
	s := &Session{conn: conn, cfg: cfg, client: client, done: make(chan struct{})}
	s.opens, s.pings = newBucket(cfg.OpenBurst), newBucket(cfg.PingBurst)
	s.msgs, s.wins = newBucket(cfg.MessageBurst), newBucket(cfg.WindowRate)
	s.dg, _ = conn.(datagramCarrier)
	s.budget = &s.granted
	s.wr.released.L = &s.wr.mu
	s.wg.Add(1) // goodbye's, from the start: others may add while Run waits
	return s
}

// Run reads the tunnel until it ends or ctx does. It returns a [*ClosedError]
// after every goroutine of s has ended; the carrier is closed then.
func (s *Session) Run(ctx context.Context) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { s.Close(reason.Shutdown); close(stopped) })
	if !s.client && !s.established.Load() {
		_ = s.conn.SetReadDeadline(time.Now().Add(s.cfg.HelloTimeout))
	}
	s.alive.Store(true)
	s.cfg.Keeper.add(s)
	if s.dg != nil {
		s.wg.Add(1) // goodbye is counted still
		go s.receiveApart()
	}
	r, err := s.read()
	s.fail(&ClosedError{Reason: r, Remote: r == reason.TunnelClosed, Cause: err}, true)
	s.cfg.Keeper.remove(s)
	if !stop() {
		<-stopped
	}
	s.wg.Wait()
	return s.Err()
}

// Establish lets the peer send every kind of record: it said who it is. Call it
// from [Handler].Message.
func (s *Session) Establish() {
	_ = s.conn.SetReadDeadline(time.Time{})
	s.established.Store(true)
}

// ShareBudget has the flows of s take their credit from the budget of o, which
// belongs to the same tunnel over another connection. Call it before the first
// flow, from [Handler].Message.
func (s *Session) ShareBudget(o *Session) { s.budget = o.budget }

// Close ends the tunnel: every flow is reset with r here, the peer is told r,
// and the carrier is closed after at most Config.Farewell. It does not wait.
func (s *Session) Close(r reason.Reason) { s.fail(&ClosedError{Reason: r}, true) }

// Done is closed when the tunnel has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err returns nil while the tunnel lives, then a [*ClosedError].
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		return nil
	}
	return s.err
}

// Send queues one MESSAGE, ahead of all data. It copies payload and does not
// wait for the carrier.
func (s *Session) Send(payload []byte) error {
	if len(payload) == 0 || len(payload) > MaxMessage {
		return errors.New("send message: 1 to 16384 bytes")
	}
	if err := s.control(Message, 0, 0, payload); err != nil {
		return err
	}
	s.flush()
	return nil
}

// Start asks the gateway for a flow, for datagrams or a stream. It returns at
// once; call Wait. It copies payload. Requests reach the gateway in the order
// of the calls.
func (s *Session) Start(datagrams bool, payload []byte) (*Flow, error) {
	if !s.client {
		return nil, errors.New("open flow: only an agent opens flows")
	}
	if len(payload) > MaxOpen-4 {
		return nil, errors.New("open flow: the request is too long")
	}
	f, err := s.start(datagrams, payload)
	if err != nil {
		return nil, err
	}
	s.kick()
	return f, nil
}

// start registers a flow and queues its OPEN under one lock, so that ids reach
// the peer in their order.
func (s *Session) start(datagrams bool, payload []byte) (*Flow, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return nil, s.err
	case s.live >= s.cfg.MaxFlows, s.lastID == ^uint32(0):
		return nil, &RefusedError{Reason: reason.FlowLimit}
	}
	f := s.newFlow(s.lastID+1, datagrams)
	if err := s.control(Open, flags(datagrams), f.id, u32(f.window), payload); err != nil {
		s.giveBack(f.window)
		return nil, err
	}
	s.adopt(f)
	return f, nil
}

func flags(datagrams bool) uint8 {
	if datagrams {
		return flagDatagram
	}
	return 0
}

// adopt registers f; mu is held.
func (s *Session) adopt(f *Flow) {
	if s.flows == nil {
		s.flows = map[uint32]*Flow{}
	}
	s.flows[f.id] = f
	s.lastID = f.id
	s.live++
}

// forget takes f out of the table: no record of it is expected any more.
func (s *Session) forget(f *Flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.flows, f.id)
	if len(s.flows) == 0 {
		s.flows = nil
	}
}

// retire counts f out: its owner is done with it.
func (s *Session) retire(window int) {
	s.giveBack(window)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live--
}

// roundTrip returns the carrier's round trip, asked for at most once a second.
func (s *Session) roundTrip(now time.Time) time.Duration {
	if s.cfg.RoundTrip == nil {
		return 0
	}
	if at := s.tripAt.Load(); now.UnixNano()-at > int64(time.Second) && s.tripAt.CompareAndSwap(at, now.UnixNano()) {
		s.trip.Store(int64(s.cfg.RoundTrip(s.conn)))
	}
	return time.Duration(s.trip.Load())
}

// left is what of the budget is not taken.
func (s *Session) left() int { return s.cfg.Budget - int(s.budget.Load()) }

// borrow takes up to want bytes of credit from the budget.
func (s *Session) borrow(want int) int {
	for {
		have := s.budget.Load()
		n := min(int64(want), int64(s.cfg.Budget)-have)
		if n <= 0 {
			return 0
		}
		if s.budget.CompareAndSwap(have, have+n) {
			return int(n)
		}
	}
}

// giveBack returns what a window took beyond its guaranteed part.
func (s *Session) giveBack(window int) {
	if n := window - s.cfg.MinWindow; n > 0 {
		s.budget.Add(-int64(n))
	}
}

// fail ends the tunnel, once. say tells the peer.
func (s *Session) fail(why *ClosedError, say bool) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = why
	flows := slices.Collect(maps.Values(s.flows))
	s.flows = nil
	s.mu.Unlock()
	close(s.done)
	for _, f := range flows {
		f.die(why.Reason, why.Remote)
	}
	go s.goodbye(why.Reason, say && !why.Remote)
}

// tick is called by the keeper at each of its periods.
func (s *Session) tick() {
	stalled, quiet := s.wr.since(&s.lastWrite)
	if stalled {
		s.stuck++
	} else {
		s.stuck = 0
	}
	if s.alive.Swap(false) {
		s.silent = 0
	} else {
		s.silent++
	}
	switch {
	case s.silent >= silentTicks || s.stuck > silentTicks:
		s.Close(reason.PeerTimeout)
	case s.client && (s.silent > 0 || quiet):
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], s.sent.Load())
		if s.control(Ping, 0, 0, b[:]) == nil {
			s.flush()
		}
	}
}

// Stats is a picture of a session.
type Stats struct {
	Flows   int    // whose owner is not done
	Credit  int64  // bytes taken from the budget, by all that share it
	Sent    uint64 // bytes of DATA and DATAGRAM
	Dropped uint64 // datagrams
}

// Stats returns a picture of s.
func (s *Session) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Flows: s.live, Credit: s.budget.Load(), Sent: s.sent.Load(), Dropped: s.dropped.Load()}
}
