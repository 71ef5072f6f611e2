package ctlclient

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/wire"
)

// eventKind is what came over the push stream.
type eventKind uint8

const (
	eventOpen    eventKind = iota + 1 // the stream is open, or there is none: pull now
	eventDelta                        // data is an X.delta envelope
	eventChanged                      // data names a list to pull
	eventResync                       // changes were missed: pull everything
)

type event struct {
	kind eventKind
	id   string
	data []byte
	from *pushStream // nil: none
}

// silence is how long the push stream of a control center may say nothing that
// does not tell how often it beats: two heartbeats of 10 s and some.
const silence = 25 * time.Second

// leastSilence is the shortest silence that means something, beside what answers
// usually take: a packet that was lost comes again within both.
const leastSilence = 500 * time.Millisecond

// silenceOf returns how long a stream may say nothing: three of the heartbeats
// that its control center has announced.
func silenceOf(h http.Header, usual time.Duration) time.Duration {
	ms, err := strconv.Atoi(h.Get(wire.HeartbeatHeader))
	if err != nil || ms <= 0 {
		return silence
	}
	return min(max(3*time.Duration(ms)*time.Millisecond, leastSilence+usual), silence)
}

// maxEvent bounds one event: a delta is one message.
const maxEvent = wire.MaxMessage + 4096

// The bounds of a stream that cannot be opened, or breaks.
const (
	openLimit  = 8 * time.Second // connection, handshake and head: four round trips
	openFaults = 5               // in a row end the session
	pauseFirst = 250 * time.Millisecond
	pauseMost  = 5 * time.Second
	pollEvery  = time.Second // pulls while no stream is known to be alive
)

// push keeps a push stream until ctx ends. When it falls silent, a second one
// is opened beside it and takes over; one that breaks is opened again in the
// same session. Until one is known to be alive the lists are pulled each second:
// a revocation does not wait for a connection whose packets vanish, nor for a
// control center whose streams stall. When no stream can be opened the session
// ends. A control center that has no push stream leaves it at the pulls.
func (g *Gateway) push(ctx context.Context, out chan<- event) error {
	defer g.set(func(s *GatewayStatus) { s.Push = false })
	type end struct {
		st  *pushStream
		err error
	}
	ends := make(chan end)
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := func(old *pushStream) *pushStream {
		st := &pushStream{g: g, out: out, old: old, silent: make(chan struct{}, 1), ended: make(chan struct{})}
		var sctx context.Context
		sctx, st.stop = context.WithCancel(ctx)
		running.Go(func() {
			err := st.run(sctx)
			st.stop()
			close(st.ended)
			select {
			case ends <- end{st, err}:
			case <-ctx.Done():
			}
		})
		return st
	}
	pause := pauseFirst
	faults, broke := 0, false
	again := time.NewTimer(0)
	defer again.Stop()
	poll := time.NewTimer(pollEvery)
	defer poll.Stop()
	pullNow := func() {
		select {
		case out <- event{kind: eventOpen}:
		default: // there is enough to do
		}
		poll.Reset(pollEvery)
	}
	var cur, next *pushStream // next is being opened to take cur's place
	for {
		var silent <-chan struct{}
		if cur != nil && next == nil {
			silent = cur.silent
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-silent:
			g.log.Warn("push stream is silent, opening another")
			g.set(func(s *GatewayStatus) { s.Reopened++ })
			again.Stop()
			next = start(cur)
			pullNow()
		case <-poll.C:
			if !cur.alive() {
				pullNow()
			}
		case <-again.C:
			if cur == nil {
				if broke { // it shows at once that we are there (§7.3.4)
					g.addStatus(ctx, "run")
				}
				cur = start(nil)
			} else if next == nil {
				next = start(cur)
			}
		case e := <-ends:
			replaced := e.st == cur && next != nil
			if e.st == next {
				next = nil
			} else {
				cur, next = next, nil
			}
			if replaced { // cur is open now
				faults = 0
				continue
			}
			switch faults++; {
			case e.st.opened:
				faults = 0
			case errors.Is(e.err, errNotIdentified), noConnection(e.err), faults >= openFaults:
				return e.err
			}
			if e.st.lived >= steady || e.st.moved && (errors.Is(e.err, errMissed) || errors.Is(e.err, errRefusedEvent)) {
				pause = pauseFirst
			}
			g.log.Warn("push stream broke, opening another", zap.Error(e.err), zap.Duration("retry_in", pause))
			again.Reset(sooner(pause))
			pause, broke = min(2*pause, pauseMost), true
			pullNow()
		}
		g.set(func(s *GatewayStatus) { s.Push = cur != nil && cur.isOpen.Load() })
	}
}

// noConnection reports whether err says that no connection was made.
func noConnection(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// pushStream is one push stream; run is for one goroutine.
type pushStream struct {
	g      *Gateway
	out    chan<- event
	old    *pushStream // whose place it takes once it is open; nil: nobody's
	stop   context.CancelFunc
	silent chan struct{} // capacity 1; told when it has said nothing for too long
	ended  chan struct{} // closed after run
	isOpen atomic.Bool
	broken atomic.Bool // a delta of it was refused: its place stays before that
	quiet  atomic.Bool // it has said nothing for too long
	none   atomic.Bool // the control center has no push stream

	opened bool          // after run: it was open
	moved  bool          // after run: Last-Event-ID went on by it
	lived  time.Duration // after run: how long
}

// alive reports whether st is open and talks, or there is none to be had. A
// stream that is nil is not.
func (st *pushStream) alive() bool {
	return st != nil && (st.none.Load() || st.isOpen.Load() && !st.quiet.Load())
}

func (st *pushStream) send(ctx context.Context, e event) error {
	select {
	case st.out <- e:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (st *pushStream) run(ctx context.Context) error {
	g := st.g
	late := time.AfterFunc(openLimit, st.stop)
	resp, err := st.open(ctx, late)
	if err == nil && !late.Stop() {
		resp.Body.Close()
		err = fmt.Errorf("%w: push stream: no answer for %v", ErrDown, openLimit)
	}
	if err != nil {
		late.Stop()
		return err
	}
	defer resp.Body.Close()
	began := time.Now()
	st.opened = true
	st.isOpen.Store(true)
	defer func() {
		st.isOpen.Store(false)
		st.lived = time.Since(began)
	}()
	if st.old != nil { // what it still says comes again
		st.old.stop()
		<-st.old.ended
		st.old = nil
	}
	g.set(func(s *GatewayStatus) { s.Push = true })
	if err := st.send(ctx, event{kind: eventOpen}); err != nil {
		return err
	}
	limit := silenceOf(resp.Header, g.call.pace.usual())
	watch := time.AfterFunc(limit, func() {
		st.quiet.Store(true)
		select {
		case st.silent <- struct{}{}:
		default:
		}
	})
	defer watch.Stop()
	var seen uint64 // number of the newest event
	err = readEvents(resp.Body, func() {
		watch.Reset(limit)
		st.quiet.Store(false)
		g.call.silences.heard()
	}, func(in sse) error {
		missed := in.seq > seen+1 || in.seq > seen && in.beat()
		e := event{id: in.id, data: in.data, from: st}
		if in.seq != 0 && in.seq <= seen || missed {
			e.id = "" // a repeat, or the first behind a loss: the stream's place stays
		}
		seen = max(seen, in.seq)
		st.moved = st.moved || e.id != ""
		if err := st.take(ctx, in.name, e); err != nil || !missed {
			return err
		}
		return errMissed
	})
	if st.broken.Load() {
		return fmt.Errorf("%w: push stream: %w", ErrDown, errRefusedEvent)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: push stream: %w", ErrDown, err)
}

// errRefusedEvent ends a stream of which a delta was refused: the next one asks
// for it again.
var errRefusedEvent = errors.New("a delta was refused")

// applied moves Last-Event-ID behind e, which was handled. A delta that was
// refused is asked for once more, over another stream, for a revocation may be
// in it that no list repeats; when it is refused again, the place goes on
// without it, or nothing behind it would ever come.
func (g *Gateway) applied(e event, refused bool) {
	if e.id == "" || e.from != nil && e.from.broken.Load() {
		return
	}
	g.mu.Lock()
	again := refused && e.from != nil && g.refusedEvent != e.id
	if again {
		g.refusedEvent = e.id
	} else {
		g.lastEvent = e.id
	}
	g.mu.Unlock()
	if again {
		e.from.broken.Store(true)
		e.from.stop()
	}
}

// errMissed ends a stream of which an event did not come: the next one goes on
// behind the last event that did, so what was lost is sent again.
var errMissed = errors.New("an event was lost on the way")

// take hands on e, which has the name.
func (st *pushStream) take(ctx context.Context, name string, e event) error {
	switch name {
	case "delta":
		e.kind = eventDelta
	case "changed":
		e.kind = eventChanged
	case "resync":
		e.kind = eventResync
	case "":
		return nil // the heartbeat
	default:
		st.g.log.Debug("event of an unknown kind", zap.String("event", name))
		return nil
	}
	return st.send(ctx, e)
}

// open asks for the stream, from the last event that was applied on. Where
// there is none, it waits for the end of ctx.
func (st *pushStream) open(ctx context.Context, late *time.Timer) (*http.Response, error) {
	g := st.g
	head := http.Header{"Accept": {"text/event-stream"}}
	g.mu.Lock()
	if g.lastEvent != "" {
		head.Set("Last-Event-ID", g.lastEvent)
	}
	g.mu.Unlock()
	resp, err := g.call.fetch(ctx, "/events", head, g.call.pace.streams())
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil && kind == "text/event-stream" {
			return resp, nil
		}
		err = fmt.Errorf("%w: push stream: content type %q", ErrDown, resp.Header.Get("Content-Type"))
	case http.StatusForbidden:
		err = errNotIdentified
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		g.log.Warn("control center has no push stream: lists are only pulled")
		st.none.Store(true)
		late.Stop()
		if err = st.send(ctx, event{kind: eventOpen}); err == nil {
			<-ctx.Done()
			err = ctx.Err()
		}
	default:
		err = fmt.Errorf("%w: push stream: HTTP status %d", ErrDown, resp.StatusCode)
	}
	resp.Body.Close()
	return nil, err
}

// sse is one server-sent event.
type sse struct {
	id, name string
	seq      uint64 // its number on the stream, 0 if it has none; of a heartbeat: of the event before it
	data     []byte
}

// beat reports whether e is only a heartbeat.
func (e *sse) beat() bool { return e.name == "" && e.id == "" && e.data == nil }

// readEvents reads server-sent events from r until it ends: alive is called for
// each line, dispatch for each event, whose data it may keep. It never returns
// nil: a stream that ends is an error.
func readEvents(r io.Reader, alive func(), dispatch func(sse) error) error {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, 4096), maxEvent)
	var e sse
	lines := 0
	for in.Scan() {
		alive()
		line := in.Bytes()
		if len(line) == 0 {
			if lines > 0 {
				if err := dispatch(e); err != nil {
					return err
				}
			}
			e, lines = sse{}, 0
			continue
		}
		field, value, _ := bytes.Cut(line, []byte{':'})
		value = bytes.TrimPrefix(value, []byte{' '})
		switch string(field) {
		case "": // a comment: the heartbeat
			continue
		case "id":
			if len(value) <= 64 && !bytes.ContainsRune(value, 0) {
				e.id = string(value)
			}
		case "event":
			e.name = string(value)
		case "data":
			if len(e.data)+len(value) > maxEvent {
				return fmt.Errorf("an event of more than %d bytes", maxEvent)
			}
			if lines > 0 && e.data != nil {
				e.data = append(e.data, '\n')
			}
			e.data = append(e.data, value...)
		case "seq":
			n, err := strconv.ParseUint(string(value), 10, 63)
			if err != nil {
				return fmt.Errorf("number of an event: %w", err)
			}
			e.seq = n
		default:
			continue
		}
		lines++
	}
	if err := in.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}
