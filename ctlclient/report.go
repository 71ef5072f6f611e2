package ctlclient

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// Report is what an outbox keeps: a message ready to be sealed. Its id and its
// event's time are fixed when it is made, so a repeat after a lost answer has
// no second effect, and a replay tells the truth about when.
type Report struct {
	Type  string                    `json:"type"` // T4, T10, T11, T16, T21, T22
	MsgID string                    `json:"msgId"`
	At    time.Time                 `json:"at"` // when it was made, in full precision
	Ext   map[string]jsontext.Value `json:"ext,omitempty"`
	Body  jsontext.Value            `json:"body"`
}

// alertQueue is how many alerts may wait for the outbox.
const alertQueue = 1024

// liveSlots is how many live alerts may be on their way at once: on a path with
// a round trip of a second one behind the other would be late.
const liveSlots = 16

// reporter keeps reports in the outbox and sends them while a session is up:
// one stream a class in order, and live alerts ahead of the backlog.
type reporter struct {
	out    Outbox
	sender string // whose outbox it is
	// post sends one message and returns the verified answer: [caller.post].
	post  func(ctx context.Context, path string, h envelope.Header, body []byte, urgent bool) (*envelope.Message, error)
	log   *zap.Logger
	now   func() time.Time
	own   alert.Sink // for the link's own alerts
	path  map[string]string
	alert func(alert.Alert) (msgType string, m wire.Message)
	// replied, if set, sees each answer.
	replied func(*Report, *envelope.Message)

	delivery deliveries

	opened   chan struct{} // closed by open
	queue    chan raised
	audits   chan []byte   // audit records for the outbox
	urgent   chan struct{} // an alert came: who waits to connect should not; capacity 1
	refused  atomic.Uint64 // alerts that found queue full
	rejected atomic.Uint64 // reports that the control center refused for good
	dropped  [NumClasses]atomic.Uint64
	stuck    [NumClasses]stuck // each for the goroutine that sends the class in order; sessions come one after the other

	mu   sync.Mutex
	wake [NumClasses]chan struct{} // guarded by mu; closed when a record came
	sent map[string]time.Time      // guarded by mu; by type, when last acknowledged
}

// raised is an alert on its way to the outbox.
type raised struct {
	alert.Alert
	at     time.Time // on the monotonic clock
	outage bool
}

func newReporter(out Outbox, call *caller, log *zap.Logger, now func() time.Time, path map[string]string) *reporter {
	r := &reporter{out: out, sender: call.cfg.id, post: call.post, log: log, now: now, path: path, opened: make(chan struct{}), queue: make(chan raised, alertQueue), audits: make(chan []byte, auditQueue),
		urgent: make(chan struct{}, 1), sent: map[string]time.Time{}}
	r.delivery.late = func(a alert.Alert) { r.own.Raise(a) }
	for c := range r.wake {
		r.wake[c] = make(chan struct{})
	}
	return r
}

// open opens an outbox on disk; nothing is sent before. It takes a while, for
// the key is derived from the passphrase, so it runs beside the rest. Without a
// disk the link goes on in memory, and says so.
func (r *reporter) open() {
	defer close(r.opened)
	d, ok := r.out.(*Durable)
	if !ok {
		return
	}
	if d.cfg.Alerts == nil {
		d.cfg.Alerts = r.own
	}
	if err := d.Open(); err != nil {
		r.log.Error("reports are kept in memory only", zap.Error(err))
		r.own.Raise(alert.Alert{Code: alert.InternalFault, Detail: audit.Clean("reports are kept in memory only: "+err.Error(), 300)})
	}
}

// close closes an outbox on disk.
func (r *reporter) close() {
	if d, ok := r.out.(*Durable); ok {
		if err := d.Close(); err != nil {
			r.log.Error("outbox not closed well", zap.Error(err))
		}
	}
}

// Raise queues an alert; see [alert.Sink].
func (r *reporter) Raise(a alert.Alert) {
	if a.Time.IsZero() {
		a.Time = r.now()
	}
	select {
	case r.queue <- raised{a, time.Now(), !r.delivery.up.Load()}:
	default:
		r.refused.Add(1)
	}
	select {
	case r.urgent <- struct{}{}:
	default:
	}
}

// pump moves alerts from the queue to the outbox until ctx ends, and then what
// the queue still holds. The end interrupts none on its way to the disk.
func (r *reporter) pump(ctx context.Context) {
	whole := context.WithoutCancel(ctx)
	for {
		select {
		case a := <-r.queue:
			r.store(whole, a)
		case <-ctx.Done():
			for {
				select {
				case a := <-r.queue:
					r.store(whole, a)
				default:
					return
				}
			}
		}
	}
}

// pumpAudit moves audit records to the outbox until ctx ends, and then what the
// queue still holds.
func (r *reporter) pumpAudit(ctx context.Context) {
	whole := context.WithoutCancel(ctx)
	for {
		select {
		case line := <-r.audits:
			r.keepAudit(whole, line)
		case <-ctx.Done():
			for {
				select {
				case line := <-r.audits:
					r.keepAudit(whole, line)
				default:
					return
				}
			}
		}
	}
}

func (r *reporter) keepAudit(ctx context.Context, line []byte) {
	if err := r.keep(ctx, ClassAudit, wire.TypeAudit, r.now(), nil, line, begun{}); err != nil {
		r.log.Error("audit record not stored", zap.Error(err))
	}
}

func (r *reporter) store(ctx context.Context, a raised) {
	kind, m := r.alert(a.Alert)
	if err := r.put(ctx, ClassAlert, kind, a.Time, nil, m, begun{a.at, a.outage}); err != nil {
		r.log.Error("alert not stored", zap.String("code", string(a.Code)), zap.Error(err))
	}
}

// add puts a message into the outbox and wakes its sender.
func (r *reporter) add(ctx context.Context, c Class, msgType string, at time.Time, ext map[string]jsontext.Value, m wire.Message) error {
	return r.put(ctx, c, msgType, at, ext, m, begun{time.Now(), !r.delivery.up.Load()})
}

func (r *reporter) put(ctx context.Context, c Class, msgType string, at time.Time, ext map[string]jsontext.Value, m wire.Message, b begun) error {
	body, err := wire.Encode(m)
	if err != nil {
		r.dropped[c].Add(1)
		return fmt.Errorf("make report: %w", err)
	}
	return r.keep(ctx, c, msgType, at, ext, body, b)
}

// keep puts a body into the outbox. b is zero for what is not timed.
func (r *reporter) keep(ctx context.Context, c Class, msgType string, at time.Time, ext map[string]jsontext.Value, body []byte, b begun) error {
	id := rand.Text()
	payload, err := json.Marshal(Report{Type: msgType, MsgID: id, At: at, Ext: ext, Body: body}, json.Deterministic(true))
	if err == nil {
		if !b.at.IsZero() {
			r.delivery.begin(id, b)
		}
		_, err = r.out.Append(ctx, c, payload)
	}
	if err != nil {
		r.delivery.forget(id)
		r.dropped[c].Add(1)
		return fmt.Errorf("store report: %w", err)
	}
	r.mu.Lock()
	close(r.wake[c])
	r.wake[c] = make(chan struct{})
	r.mu.Unlock()
	return nil
}

func (r *reporter) waiting(c Class) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wake[c]
}

// streams keeps sending during one session: each function until its ctx ends or
// the link fails, and its error ends the session. A control center that
// acknowledges cumulatively gets each class as a chain; another one gets reports
// one by one.
func (r *reporter) streams() []func(context.Context) error {
	var once sync.Once
	var c *chain
	var failed error
	begin := func(ctx context.Context) (*chain, error) {
		if err := r.ready(ctx); err != nil {
			return nil, err
		}
		once.Do(func() { c, failed = r.newChain(ctx) })
		return c, failed
	}
	live := sync.OnceValue(func() uint64 { return r.out.Stats()[ClassAlert].LastSeq })
	class := func(k Class, after, last func() uint64) func(context.Context) error {
		return func(ctx context.Context) error {
			switch c, err := begin(ctx); {
			case errors.Is(err, errNotChained):
				return r.stream(ctx, k, after(), last())
			case err != nil:
				return err
			default:
				return c.run(ctx, k, false)
			}
		}
	}
	none, all := func() uint64 { return 0 }, func() uint64 { return ^uint64(0) }
	return []func(context.Context) error{
		func(ctx context.Context) error { // what happens now
			switch c, err := begin(ctx); {
			case errors.Is(err, errNotChained):
				return r.live(ctx, live())
			case err != nil:
				return err
			default:
				both, ctx := errgroup.WithContext(ctx)
				both.Go(func() error { return c.live(ctx, ClassAlert, alertFlights) })
				both.Go(func() error { return c.live(ctx, ClassStatus, statusFlights) })
				return both.Wait()
			}
		},
		class(ClassAlert, none, live), // what waited, then what happens when nothing waits
		class(ClassIdentity, none, all),
		class(ClassStatus, none, all),
		func(ctx context.Context) error { // no table: only for control centers that know X.outbox
			switch c, err := begin(ctx); {
			case errors.Is(err, errNotChained):
				return nil
			case err != nil:
				return err
			default:
				return c.run(ctx, ClassAudit, false)
			}
		},
	}
}

// ready waits until the outbox is open.
func (r *reporter) ready(ctx context.Context) error {
	select {
	case <-r.opened:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stream sends the records of a class with after < Seq <= last in order.
func (r *reporter) stream(ctx context.Context, c Class, after, last uint64) error {
	if err := r.ready(ctx); err != nil {
		return err
	}
	for {
		woken := r.waiting(c) // before Next: what comes in between closes it
		batch, err := r.out.Next(c, after, 64)
		if err != nil {
			return fmt.Errorf("read outbox: %w", err)
		}
		for _, e := range batch {
			if e.Seq > last {
				return nil
			}
			if err := r.deliver(ctx, e); err != nil {
				return err
			}
			after = e.Seq
		}
		if len(batch) > 0 {
			continue
		}
		if after >= last || last != ^uint64(0) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-woken:
		}
	}
}

// live sends the alerts with Seq > after as they come, [liveSlots] at once, until
// ctx ends or one of them fails.
func (r *reporter) live(ctx context.Context, after uint64) error {
	sending, ctx := errgroup.WithContext(ctx)
	sending.SetLimit(liveSlots)
	for ctx.Err() == nil {
		woken := r.waiting(ClassAlert)
		batch, err := r.out.Next(ClassAlert, after, 64)
		if err != nil {
			sending.Go(func() error { return fmt.Errorf("read outbox: %w", err) })
			break
		}
		for _, e := range batch {
			after = e.Seq
			sending.Go(func() error { return r.deliver(ctx, e) })
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
		case <-woken:
		}
	}
	if err := sending.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// deliver sends one record. What the control center refuses by a signed answer
// is dropped and counted: sending it again would get the same answer.
func (r *reporter) deliver(ctx context.Context, e Entry) error {
	var p Report
	if err := json.Unmarshal(e.Payload, &p); err != nil || r.path[p.Type] == "" {
		r.rejected.Add(1)
		r.log.Error("report of the outbox cannot be read", zap.Stringer("class", e.Class), zap.Uint64("seq", e.Seq))
		return r.out.Ack(e.Class, e.Seq)
	}
	answer, err := r.post(ctx, r.path[p.Type], envelope.Header{MsgType: p.Type, MsgID: p.MsgID, Ext: p.Ext}, p.Body, true)
	var no *RefusedError
	switch {
	case errors.As(err, &no) && no.Reason == reason.MessageSkew: // of the sending, not of the report
		return fmt.Errorf("%w: %s", ErrDown, no.Error())
	case errors.As(err, &no):
		r.delivery.forget(p.MsgID)
		r.refusedFor(e.Class, p.Body, no)
	case err != nil:
		return err
	default:
		now := r.now()
		r.mu.Lock()
		r.sent[p.Type] = now
		r.mu.Unlock()
		r.delivery.done(&p)
		if r.replied != nil {
			r.replied(&p, answer)
		}
	}
	return r.out.Ack(e.Class, e.Seq)
}

// refusedFor counts and tells a report that the control center refused for
// good. When that was an alert of this very kind it is only logged: it could go
// round for ever.
func (r *reporter) refusedFor(c Class, body []byte, no *RefusedError) {
	r.rejected.Add(1)
	r.log.Error("report refused by the control center", zap.Stringer("class", c), zap.String("result", no.Result))
	var a struct {
		Type alert.Code `json:"exceptionAlertType"`
	}
	if c == ClassAlert && (json.Unmarshal(body, &a) != nil || a.Type == alert.MessageRefused) {
		return
	}
	r.own.Raise(alert.Alert{Code: alert.MessageRefused, Reason: no.Reason, Detail: audit.Clean(c.String()+" report: "+no.Error(), 300)})
}

// confirm notes a report that was acknowledged past the outbox.
func (r *reporter) confirm(d Delivery) {
	now := r.now()
	r.mu.Lock()
	r.sent[d.Type] = now
	r.mu.Unlock()
	if r.delivery.tell != nil {
		r.delivery.tell(d)
	}
}

// lastSent returns when a report of this type was acknowledged last.
func (r *reporter) lastSent(msgType string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent[msgType]
}

// stats returns the outbox's figures with what never reached it.
func (r *reporter) stats() [NumClasses]ClassStats {
	s := r.out.Stats()
	for c := range s {
		s[c].Dropped += r.dropped[c].Load()
	}
	return s
}

// depth returns how many records wait and how many were dropped.
func (r *reporter) depth() (pending int, dropped uint64) {
	for _, c := range r.stats() {
		pending += c.Pending
		dropped += c.Dropped
	}
	return pending, dropped + r.refused.Load()
}

// flush sends what waits, alerts and status first, until ctx ends.
func (r *reporter) flush(ctx context.Context) error {
	ch, err := r.newChain(ctx)
	if err != nil && !errors.Is(err, errNotChained) {
		return err
	}
	for _, c := range []Class{ClassAlert, ClassStatus, ClassIdentity, ClassAudit} {
		switch {
		case ch != nil:
			if err := ch.run(ctx, c, true); err != nil {
				return err
			}
			continue
		case c == ClassAudit:
			continue
		}
		if err := r.stream(ctx, c, 0, ^uint64(0)-1); err != nil {
			return err
		}
	}
	return nil
}

// ext makes a header extension of v.
func ext(v any) jsontext.Value {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode extension %v: %v", v, err)) // only plain values come here
	}
	return b
}
