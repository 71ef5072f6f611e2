package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/internal/spool"
	"github.com/yumen-zt/yumen/wire"
)

// chain sends the outbox of one session to a control center that acknowledges
// it cumulatively (docs/binding-v1.md §7.1): each class in order, one message in
// flight, so that a quarter of the kept connections serves what waited; and
// alerts ahead of their turn when that would take long.
type chain struct {
	r     *reporter
	d     *Durable
	s     *spool.Spool
	id    string
	alone string // the type whose answer matters; it goes by itself

	mu    sync.Mutex
	at    [NumClasses]place           // guarded by mu; acknowledged
	sent  [NumClasses]uint64          // guarded by mu; on its way in order, or acknowledged
	kept  [NumClasses]map[uint64]bool // guarded by mu; sent ahead, and the control center has it
	moved chan struct{}               // guarded by mu; closed when sent changes
}

// liveAfter is how long a new alert or status waits for its turn before it goes
// ahead of what is older: on a path with a round trip of a second, or beside a
// backlog, its turn comes too late. alertFlights and statusFlights are how many
// messages do so at once. liveNewest of what waited count as new: an alert that
// was raised while the link came up must not wait for hours of backlog.
const (
	liveNewest    = 64
	liveAfter     = 100 * time.Millisecond
	alertFlights  = liveSlots
	statusFlights = liveSlots / 2
)

var (
	errNotChained   = errors.New("the control center does not acknowledge cumulatively")
	errOutboxForked = errors.New("the outbox is not the one that the control center knows")
)

// newChain asks the control center where it stands. errNotChained says that it
// is of another make: reports then go one by one, acknowledged by msgId.
func (r *reporter) newChain(ctx context.Context) (*chain, error) {
	d, ok := r.out.(*Durable)
	if !ok {
		return nil, errNotChained
	}
	_, s := d.now()
	if s == nil {
		return nil, errNotChained
	}
	for range 2 {
		c := &chain{r: r, d: d, s: s, id: d.acks.name(), moved: make(chan struct{})}
		if r.path["T16"] != "" {
			c.alone = "T16"
		}
		for i := range c.kept {
			c.kept[i] = map[uint64]bool{}
		}
		said, m, err := c.ask(ctx)
		if err != nil {
			return nil, err
		}
		if err = c.agree(said, m); err == nil {
			return c, nil
		}
		if !errors.Is(err, errOutboxForked) {
			return nil, err
		}
		if err := c.fork(err); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: it knows an outbox that was just named", ErrDown)
}

// fork goes on under another identifier: what the control center has under the
// old one can not be told apart from what we have, so nothing of ours counts as
// delivered. A record may then come twice, none is lost.
func (c *chain) fork(why error) error {
	c.r.log.Error("outbox renamed", zap.String("outbox", c.id), zap.Error(why))
	c.r.own.Raise(alert.Alert{Code: alert.StateAltered, Detail: "outbox: " + why.Error()})
	return c.d.acks.renew()
}

// ask sends X.outbox without items.
func (c *chain) ask(ctx context.Context) (*wire.OutboxAcks, *envelope.Message, error) {
	m, err := c.post(ctx, "/outbox", wire.TypeOutbox, "", nil, []byte(`{"items":[]}`), wire.OutboxNumber{ID: c.id}, true)
	var no *RefusedError
	var status *statusError
	switch {
	case errors.As(err, &no):
		return nil, nil, errNotChained
	case errors.As(err, &status) && notSpoken(status.code):
		return nil, nil, errNotChained
	case err != nil:
		return nil, nil, err
	}
	acks, err := acksOf(m, c.id)
	if err != nil {
		return nil, nil, errNotChained
	}
	return acks, m, nil
}

// acksOf reads header.ext.outbox of a reply.
func acksOf(m *envelope.Message, id string) (*wire.OutboxAcks, error) {
	raw, ok := m.Header.Ext[wire.ExtOutbox]
	if !ok {
		return nil, errors.New("read acknowledgement: there is none")
	}
	acks, err := wire.DecodeExtension[wire.OutboxAcks](raw)
	if err != nil {
		return nil, err
	}
	if acks.ID != id {
		return nil, fmt.Errorf("read acknowledgement: it is for outbox %q", acks.ID)
	}
	return acks, nil
}

// agree takes over where the control center stands in each class.
func (c *chain) agree(said *wire.OutboxAcks, m *envelope.Message) error {
	for k := range NumClasses {
		if err := c.stand(k, c.standing(said, k), m); err != nil {
			return err
		}
	}
	return nil
}

// standing returns where the control center says that it stands in class k.
func (c *chain) standing(said *wire.OutboxAcks, k Class) wire.OutboxAck {
	if i := slices.IndexFunc(said.Acks, func(a wire.OutboxAck) bool { return a.Class == k.String() }); i >= 0 {
		return said.Acks[i]
	}
	return wire.OutboxAck{Class: k.String(), Head: wire.OutboxStart(c.id, c.r.sender, k.String()).String()}
}

// stand compares where the control center stands in class k with what we know.
// Further than us it can only be when an acknowledgement was lost: then what
// lies between must give its chain value.
func (c *chain) stand(k Class, ack wire.OutboxAck, m *envelope.Message) error {
	there, err := placeOf(ack)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDown, err)
	}
	own := c.d.acks.at(k, c.r.sender)
	switch {
	case there.upTo < own.upTo:
		c.d.acks.lapsed(k)
		c.r.log.Error("the control center has forgotten reports that it had acknowledged", zap.Stringer("class", k),
			zap.Uint64("acknowledged", own.upTo), zap.Uint64("stands_at", there.upTo))
		c.r.own.Raise(alert.Alert{Code: alert.StateAltered, Detail: fmt.Sprintf("control center: outbox class %s was acknowledged up to %d, it knows %d", k, own.upTo, there.upTo)})
	case there.upTo == own.upTo && there.head != own.head:
		return fmt.Errorf("%w: %s %d has another chain value there", errOutboxForked, k, there.upTo)
	case there.upTo > c.s.Last(classOf(k)):
		return fmt.Errorf("%w: %s stands at %d here and at %d there (restored from a backup?)", errOutboxForked, k, c.s.Last(classOf(k)), there.upTo)
	case there.upTo > own.upTo:
		if err := c.recompute(k, own, there); err != nil {
			return err
		}
	}
	c.settle(k, there, m)
	return nil
}

// recompute checks that our records after own lead to there.
func (c *chain) recompute(k Class, own, there place) error {
	for own.upTo < there.upTo {
		s, err := c.d.stretch(c.s, k, own, nil, "")
		if err != nil {
			return err
		}
		i := slices.IndexFunc(s.after, func(p place) bool { return p.upTo >= there.upTo })
		if i < 0 && len(s.after) > 0 {
			own = s.end()
			continue
		}
		if i < 0 || s.after[i] != there {
			return fmt.Errorf("%w: %s %d has another chain value there", errOutboxForked, k, there.upTo)
		}
		break
	}
	return nil
}

func placeOf(a wire.OutboxAck) (place, error) {
	head, err := wire.ParseOutboxHead(a.Head)
	return place{a.UpTo, head}, err
}

// settle keeps the acknowledgement; what it covers is forgotten when it is on
// disk.
func (c *chain) settle(k Class, p place, m *envelope.Message) {
	c.mu.Lock()
	c.at[k] = p
	c.sent[k] = max(c.sent[k], p.upTo)
	for seq := range c.kept[k] {
		if seq <= p.upTo {
			delete(c.kept[k], seq)
		}
	}
	c.mu.Unlock()
	if was := c.d.acks.of(k); p.upTo == 0 && (was == nil || was.Outbox != c.id || was.UpTo == 0) {
		return
	} // else it has forgotten everything, and from there its chain goes on
	c.d.acks.take(k, Evidence{Outbox: c.id, Class: k.String(), UpTo: p.upTo, Head: p.head.String(), At: c.r.now(), Control: m.Header.Sender, Envelope: m.Raw})
}

// position returns where class k stands, and what was sent ahead of that.
func (c *chain) position(k Class) (p place, kept map[uint64]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at[k], maps.Clone(c.kept[k])
}

func (c *chain) note(k Class, to uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent[k] = max(c.sent[k], to)
	close(c.moved)
	c.moved = make(chan struct{})
}

// covered returns up to where class k is on its way in order, and a channel
// that closes when that changes.
func (c *chain) covered(k Class) (uint64, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent[k], c.moved
}

// run sends class k in order until ctx ends or the link fails; with drain, until
// nothing waits.
func (c *chain) run(ctx context.Context, k Class, drain bool) error {
	for {
		woken := c.r.waiting(k) // before the outbox is read: what comes in between closes it
		at, kept := c.position(k)
		s, err := c.d.stretch(c.s, k, at, kept, c.alone)
		if err != nil {
			return fmt.Errorf("read outbox: %w", err)
		}
		if len(s.items) > 0 {
			if err := c.send(ctx, k, at, s); err != nil {
				return err
			}
			continue
		}
		if drain {
			return nil
		}
		if c.s.Unsynced(classOf(k)) { // of the lazy class nobody says when it is synced
			if !sleep(ctx, 50*time.Millisecond) {
				return ctx.Err()
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-woken:
		}
	}
}

// send sends s, which follows at, and judges the acknowledgement.
func (c *chain) send(ctx context.Context, k Class, at place, s *stretch) error {
	end := s.end()
	c.note(k, end.upTo)
	n := wire.OutboxNumber{ID: c.id, Class: k.String(), From: at.upTo + 1, To: end.upTo, Prev: at.head.String(), Head: end.head.String()}
	m, acks, err := c.exchange(ctx, k, s, n)
	if err != nil {
		err = c.head(ctx, k, s, err)
	}
	if errors.Is(err, errGivenUp) {
		return nil // its number is a gap now, and the class goes on
	}
	if err != nil {
		return err
	}
	i := slices.IndexFunc(acks.Acks, func(a wire.OutboxAck) bool { return a.Class == k.String() })
	if i < 0 {
		return fmt.Errorf("%w: its answer acknowledges another class", ErrDown)
	}
	there, err := placeOf(acks.Acks[i])
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDown, err)
	}
	if slices.Contains(s.after, there) {
		c.settle(k, there, m)
		c.judge(k, s, there.upTo, acks.Acks[i].Refused)
		return nil
	}
	if refusedFor(acks.Acks[i].Refused, at.upTo+1, reason.MessageConflict) {
		return c.forked(fmt.Errorf("%w: %s %d was another record there", errOutboxForked, k, at.upTo+1))
	}
	if there.upTo < at.upTo {
		// The answer of a record that went ahead, as it was given then; or it has
		// forgotten. It says which.
		c.keep(k, at.upTo, acks.Acks[i].Ahead)
		return c.askAgain(ctx, k)
	}
	if there != at { // it stands elsewhere: another message of ours, or a restart
		if err := c.stand(k, acks.Acks[i], m); errors.Is(err, errOutboxForked) {
			return c.forked(err)
		} else if err != nil {
			return err
		}
		return nil
	}
	if s.items[0].SM3 != "" { // it no longer has what went ahead
		c.mu.Lock()
		c.kept[k] = map[uint64]bool{}
		c.mu.Unlock()
		return nil
	}
	if first := s.items[0].Seq; slices.Contains(acks.Acks[i].Ahead, strconv.FormatUint(first, 10)) {
		// It went ahead at the same moment, and this was answered as a repeat of
		// that: now its turn comes.
		c.mu.Lock()
		c.kept[k][first] = true
		c.mu.Unlock()
		return nil
	}
	if err := c.head(ctx, k, s, errNothingTaken); !errors.Is(err, errGivenUp) {
		return fmt.Errorf("%w of class %s", err, k)
	}
	return nil // a gap by now
}

// askAgain asks where class k stands now.
func (c *chain) askAgain(ctx context.Context, k Class) error {
	said, m, err := c.ask(ctx)
	if err != nil {
		return err
	}
	if err := c.stand(k, c.standing(said, k), m); errors.Is(err, errOutboxForked) {
		return c.forked(err)
	} else if err != nil {
		return err
	}
	return nil
}

// keep notes the numbers beyond upTo that the control center has ahead of their
// turn.
func (c *chain) keep(k Class, upTo uint64, ahead []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, text := range ahead {
		if seq, err := strconv.ParseUint(text, 10, 64); err == nil && seq > upTo {
			c.kept[k][seq] = true
		}
	}
}

func (c *chain) forked(err error) error {
	if e := c.fork(err); e != nil {
		return e
	}
	return fmt.Errorf("%w: %w", ErrDown, err)
}

func refusedFor(rs []wire.OutboxRefusal, seq uint64, why reason.Reason) bool {
	return slices.ContainsFunc(rs, func(r wire.OutboxRefusal) bool { return r.Seq == seq && resultReason(r.Result) == why })
}

// judge does what follows from the records that the control center has taken,
// or has refused for good.
func (c *chain) judge(k Class, s *stretch, upTo uint64, refused []wire.OutboxRefusal) {
	now := c.r.now()
	c.r.mu.Lock()
	for _, it := range s.items {
		if it.Type != "" && it.Seq <= upTo {
			c.r.sent[it.Type] = now
		}
	}
	c.r.mu.Unlock()
	c.delivered(s, upTo)
	for _, no := range refused {
		i := slices.IndexFunc(s.items, func(it wire.OutboxItem) bool { return it.Seq == no.Seq })
		if i < 0 {
			continue // it was told when it was ours
		}
		c.r.refusedFor(k, s.items[i].Body, &RefusedError{Table: tableOf(s.items[i].Type), Reason: resultReason(no.Result), Result: no.Result})
	}
}

// delivered tells that records of s up to upTo are answered.
func (c *chain) delivered(s *stretch, upTo uint64) {
	for _, it := range s.items {
		if it.Type != "" && it.Seq <= upTo {
			c.r.delivery.done(&Report{Type: it.Type, MsgID: it.MsgID})
		}
	}
}

// exchange sends s under n: a single record as its own table's message, else as
// X.outbox.
func (c *chain) exchange(ctx context.Context, k Class, s *stretch, n wire.OutboxNumber) (m *envelope.Message, acks *wire.OutboxAcks, err error) {
	urgent := k != ClassAudit
	it, single := s.single()
	if single = single && c.r.path[it.Type] != ""; single {
		m, err = c.post(ctx, c.r.path[it.Type], it.Type, it.MsgID, it.Ext, it.Body, n, urgent)
	} else {
		var body []byte
		if body, err = wire.EncodeExtension(wire.Outbox{Items: s.items}); err != nil {
			return nil, nil, err
		}
		m, err = c.post(ctx, "/outbox", wire.TypeOutbox, "", nil, body, n, urgent)
	}
	var no *RefusedError
	if errors.As(err, &no) {
		return c.refusal(k, s, no, single)
	}
	if err != nil {
		return nil, nil, err
	}
	if single && c.r.replied != nil {
		c.r.replied(&Report{Type: it.Type, MsgID: it.MsgID, Body: it.Body}, m)
	}
	if acks, err = acksOf(m, c.id); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrDown, err)
	}
	return m, acks, nil
}

// errGivenUp says that the record of a message will never be taken.
var errGivenUp = errors.New("the control center does not take a record of this size")

// refusal takes a signed refusal. One that says where the control center stands
// is of the record, and counts as an acknowledgement; a message that is too
// large becomes a gap here and there: errGivenUp. All else ends the session:
// nothing is given up for it.
func (c *chain) refusal(k Class, s *stretch, no *RefusedError, single bool) (*envelope.Message, *wire.OutboxAcks, error) {
	if no.reply != nil {
		if acks, err := acksOf(no.reply, c.id); err == nil {
			if no.Reason == reason.MessageConflict {
				for i := range acks.Acks {
					acks.Acks[i].Refused = []wire.OutboxRefusal{{Seq: s.items[0].Seq, Result: no.Result}}
				}
			} else if single {
				c.r.refusedFor(k, s.items[0].Body, no)
			}
			return no.reply, acks, nil
		}
	}
	if no.Reason == reason.MessageTooLarge && single {
		c.r.refusedFor(k, s.items[0].Body, no)
		if err := c.s.Drop(classOf(k), s.items[0].Seq, spool.Refused); err != nil {
			return nil, nil, err
		}
		return nil, nil, errGivenUp
	}
	return nil, nil, fmt.Errorf("%w: %s", ErrDown, no.Error())
}

func (c *chain) post(ctx context.Context, path, msgType, msgID string, fields map[string]jsontext.Value, body []byte, n wire.OutboxNumber, urgent bool) (*envelope.Message, error) {
	raw, err := json.Marshal(n, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	own := map[string]jsontext.Value{wire.ExtOutbox: raw}
	for name, v := range fields {
		own[name] = v
	}
	return c.r.post(ctx, path, envelope.Header{MsgType: msgType, MsgID: msgID, Ext: own}, body, urgent)
}

// live sends new records of class k ahead of what is older, when their turn does
// not come at once, at most flights messages at a time. It returns after its
// messages have ended.
func (c *chain) live(ctx context.Context, k Class, flights int) error {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	free := make(chan struct{}, flights)
	gone := c.s.Last(classOf(k)) // what is older waits for its turn
	gone -= min(gone, liveNewest)
	for {
		woken := c.r.waiting(k)
		sent, moved := c.covered(k)
		if last := c.s.Last(classOf(k)); last <= max(gone, sent) {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-woken:
			case <-moved:
			}
			continue
		}
		if !sleep(ctx, liveAfter) {
			return context.Cause(ctx)
		}
		sent, _ = c.covered(k)
		var s *stretch
		var err error
		if s, gone, err = c.newer(k, max(gone, sent), stretchRecords); err != nil {
			return fmt.Errorf("read outbox: %w", err)
		}
		if len(s.items) == 0 {
			continue
		}
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		all.Go(func() {
			defer func() { <-free }()
			if err := c.sendAhead(ctx, k, s); err != nil {
				cancel(err)
			}
		})
	}
}

// newer returns up to n records of k after after for one message, and the last number
// that it has looked at.
func (c *chain) newer(k Class, after uint64, n int) (s *stretch, last uint64, err error) {
	records, err := c.s.Next(classOf(k), after, n)
	if err != nil {
		return nil, after, err
	}
	s, last = &stretch{}, after
	size := 0
	for _, r := range records {
		it, _ := c.d.item(&r)
		if size += len(it.Body); len(s.items) > 0 && size > stretchBytes {
			break
		}
		if last = r.Seq; it.To == 0 {
			s.add(it, wire.OutboxHead{})
		}
	}
	return s, last, nil
}

// sendAhead sends records of k ahead of their turn. They stay in the outbox until
// their turn is acknowledged.
func (c *chain) sendAhead(ctx context.Context, k Class, s *stretch) error {
	n := wire.OutboxNumber{ID: c.id, Class: k.String(), From: s.items[0].Seq, To: s.end().upTo}
	_, acks, err := c.exchange(ctx, k, s, n)
	if errors.Is(err, errGivenUp) {
		return nil
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	for _, a := range acks.Acks {
		for _, text := range a.Ahead {
			if seq, err := strconv.ParseUint(text, 10, 64); err == nil && seq > c.at[k].upTo && seq >= n.From && seq <= n.To {
				c.kept[k][seq] = true
			}
		}
	}
	c.mu.Unlock()
	c.delivered(s, n.To)
	return nil
}
