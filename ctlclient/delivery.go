package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
)

// LateAfter is the delay that clauses 7.2 and 9.2 allow a message.
const LateAfter = 3 * time.Second

// Delivery is how one message went.
type Delivery struct {
	Type   string        // T4, T10, T11, T16, T21, T22
	MsgID  string        // of reports that came from the outbox
	Took   time.Duration // from its making to the verified answer, on the monotonic clock
	Outage bool          // it was made while the link was known to be down: the rules for buffered reports judge it
	Err    error         // there was no answer; nil for what the outbox sends, which waits until there is one
}

// begun says when a message was made.
type begun struct {
	at     time.Time // on the monotonic clock
	outage bool
}

// maxBegun bounds how many messages are timed at once; beyond it (a long
// outage) a message is not timed.
const maxBegun = 1 << 16

// deliveries times messages from their making to their answer. The zero value
// is ready.
type deliveries struct {
	up   atomic.Bool       // a session stands
	tell func(Delivery)    // may be nil
	late func(alert.Alert) // takes 2.015

	mu   sync.Mutex
	open map[string]begun // guarded by mu; by msgId
	told time.Time        // guarded by mu; when lateness was last raised
	more int              // guarded by mu; late ones since
	most Delivery         // guarded by mu; the latest of them
}

func (d *deliveries) begin(id string, b begun) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open == nil {
		d.open = map[string]begun{}
	}
	if len(d.open) < maxBegun {
		d.open[id] = b
	}
}

// forget drops a message that will have no answer.
func (d *deliveries) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.open, id)
}

// done notes the answer to a report of the outbox. One that an earlier process
// made is not timed.
func (d *deliveries) done(p *Report) {
	d.mu.Lock()
	b, ok := d.open[p.MsgID]
	delete(d.open, p.MsgID)
	d.mu.Unlock()
	if ok {
		d.judge(Delivery{Type: p.Type, MsgID: p.MsgID, Took: time.Since(b.at), Outage: b.outage})
	}
}

// time calls send, which sends a message past the outbox, and notes how it
// went. A message that was given up by ctx, or that was refused, is not judged.
func (d *deliveries) time(ctx context.Context, msgType string, send func() error) error {
	b := begun{time.Now(), !d.up.Load()}
	err := send()
	d.took(ctx, msgType, b, err)
	return err
}

// took is the end of time, for a message that began at b.
func (d *deliveries) took(ctx context.Context, msgType string, b begun, err error) {
	var no *RefusedError
	if ctx.Err() == nil && !errors.As(err, &no) {
		d.judge(Delivery{Type: msgType, Took: time.Since(b.at), Outage: b.outage, Err: err})
	}
}

// judge passes v on, and raises an alert when it took longer than the standard
// allows: at once, but at most one a minute, for it is a message itself. What
// comes within the minute is in the next one.
func (d *deliveries) judge(v Delivery) {
	if d.tell != nil {
		d.tell(v)
	}
	if v.Outage || v.Err != nil || v.Took < LateAfter {
		return
	}
	d.mu.Lock()
	d.more++
	if v.Took > d.most.Took {
		d.most = v
	}
	d.mu.Unlock()
	d.remind()
}

// remind raises what is late and was not raised, unless it is too soon.
func (d *deliveries) remind() {
	d.mu.Lock()
	now := time.Now()
	n, v := d.more, d.most
	due := n > 0 && (d.told.IsZero() || now.Sub(d.told) >= time.Minute)
	if due {
		d.told, d.more, d.most = now, 0, Delivery{}
	}
	d.mu.Unlock()
	if !due {
		return
	}
	detail := fmt.Sprintf("%s took %d ms", v.Type, v.Took.Milliseconds())
	if n > 1 {
		detail = fmt.Sprintf("%d messages, of which %s took %d ms", n, v.Type, v.Took.Milliseconds())
	}
	d.late(alert.Alert{Code: alert.DeliveryLate, Detail: detail})
}

// rest waits for d, but about a second when an alert wants to be sent, so that
// one that is raised after the path came back arrives in time. It reports false
// when ctx ended or other was told first.
func (r *reporter) rest(ctx context.Context, d time.Duration, other <-chan struct{}) bool {
	least := time.NewTimer(min(d, sooner(backoffMin)))
	defer least.Stop()
	whole := time.NewTimer(d)
	defer whole.Stop()
	var urgent <-chan struct{}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-other:
			return false
		case <-whole.C:
			return true
		case <-least.C:
			urgent = r.urgent
		case <-urgent:
			return true
		}
	}
}
