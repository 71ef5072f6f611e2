package control

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/emmansun/gmsm/sm3"
	jsonx "github.com/go-json-experiment/json"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// effects returns what may stand in an X.outbox of a party of kind. Table 16 is
// not among them: its answer is a token.
func (s *Server) effects(kind string) map[string]func(context.Context, *call) answer {
	if kind == model.Agent {
		return map[string]func(context.Context, *call) answer{"T21": s.agentStatus, "T22": s.agentAlert}
	}
	return map[string]func(context.Context, *call) answer{"T4": s.identity, "T10": s.gatewayStatus, "T11": s.gatewayAlert, wire.TypeAudit: s.gatewayAudit}
}

// placed gives a message its effect. One from an outbox has it once however
// often and on whatever way it comes, and its answer says how far the control
// center has that outbox. What must last is on disk when placed returns.
func (s *Server) placed(ctx context.Context, c *call, f func(context.Context, *call) answer) answer {
	raw, ok := c.Header.Ext[wire.ExtOutbox]
	if c.Header.MsgType == wire.TypeOutbox {
		return f(ctx, c)
	}
	if !ok {
		a := f(ctx, c)
		if a.keep == nil || a.reason != reason.OK {
			return a
		}
		lines := a.keep(nil)
		return s.kept(a, s.book.files[a.class].append(lines, func() { s.told(a.class, lines) }))
	}
	var n wire.OutboxNumber
	err := jsonx.Unmarshal(raw, &n)
	if err == nil {
		err = n.Check()
	}
	if err != nil || n.Class == "" || n.From != n.To {
		return refuse("T5", reason.MessageInvalid, "outbox")
	}
	t := s.transfer(c, n)
	t.slot.busy.Lock()
	defer t.slot.busy.Unlock()
	t.begin()
	digest, err := wire.OutboxDigest(c.Header.MsgType, c.Header.MsgID, c.Header.Ext, c.Body)
	if err != nil {
		return refuse("T5", reason.MessageMalformed, err.Error())
	}
	inOrder := n.Prev != "" && n.From == t.at.upTo+1 && n.Prev == t.at.head.String()
	if inOrder && t.at.head.Record(n.From, digest).String() != n.Head {
		return refuse("T5", reason.MessageInvalid, "outbox: the chain value is not that of the message")
	}
	have, there := t.at.ahead[n.To]
	switch {
	case there && have != digest:
		return t.answer(refuse("T5", reason.MessageConflict, "outbox: another message has this number"))
	case there && inOrder:
		t.move(n.To, t.at.head.Record(n.To, digest))
		fallthrough
	case there, n.To <= t.at.upTo:
		a := accept()
		a.detail = "repeat"
		s.stats.repeats.Add(1)
		if !inOrder {
			t.ahead = append(t.ahead, strconv.FormatUint(n.To, 10))
		}
		return t.answer(s.kept(a, t.commit()))
	}
	if !inOrder && len(t.at.ahead) >= maxAhead {
		return refuse("T5", reason.Overload, "outbox: too many records ahead of their turn")
	}
	a := f(ctx, c)
	if transient(a.reason) {
		return a
	}
	t.record(n.To, digest, inOrder, a)
	return t.answer(s.kept(a, t.commit()))
}

// kept turns a fault of the disk into an answer that makes the sender try again.
func (s *Server) kept(a answer, err error) answer {
	if err == nil {
		return a
	}
	s.log.Error("report not kept", zap.Error(err))
	return refuse("T5", reason.InternalError, err.Error())
}

// transient reports whether a refusal says nothing about the message.
func transient(r reason.Reason) bool {
	return r == reason.InternalError || r == reason.Overload || r == reason.Shutdown || r == reason.NotAuthenticated
}

// told gives new alerts to operators who watch.
func (s *Server) told(class string, lines []byte) {
	if class == "alert" {
		s.feed.send("alert", lines[:len(lines)-1])
	}
}

// outbox is X.outbox: a stretch of a class in order, or records ahead of their
// turn, or only the question where the control center stands.
func (s *Server) outbox(ctx context.Context, c *call) answer {
	var n wire.OutboxNumber
	err := jsonx.Unmarshal(c.Header.Ext[wire.ExtOutbox], &n)
	if err == nil {
		err = n.Check()
	}
	m, err2 := wire.DecodeExtension[wire.Outbox](c.Body)
	if err != nil || err2 != nil || len(m.Items) > wire.MaxOutboxItems || (n.Class == "") != (len(m.Items) == 0) {
		return refuse("T5", reason.MessageInvalid, "outbox")
	}
	if n.Class == "" {
		acks := wire.OutboxAcks{ID: n.ID, Acks: []wire.OutboxAck{}}
		for _, class := range []string{"alert", "identity", "audit", "status"} {
			if a, ok := s.book.ack(c.ID, class, n.ID); ok {
				acks.Acks = append(acks.Acks, a)
			}
		}
		a := accept()
		a.ext = a.ext.with(wire.ExtOutbox, acks)
		return a
	}
	t := s.transfer(c, n)
	t.slot.busy.Lock()
	defer t.slot.busy.Unlock()
	t.begin()
	inOrder := n.Prev != ""
	if inOrder && (n.From != t.at.upTo+1 || n.Prev != t.at.head.String()) {
		return t.answer(accept()) // the sender goes on from where we are
	}
	digests, why := t.check(m.Items, inOrder)
	if why != "" {
		return refuse("T5", reason.MessageInvalid, "outbox: "+why)
	}
	for i := range m.Items {
		if !t.item(ctx, &m.Items[i], digests[i], inOrder) {
			break
		}
	}
	return t.answer(s.kept(accept(), t.commit()))
}

// transfer is one message of an outbox at work.
type transfer struct {
	s       *Server
	c       *call
	n       wire.OutboxNumber
	slot    *slot
	at      position
	lines   []byte
	alerts  [][]byte
	moves   []func()
	behind  bool // at is further than the last line says
	ahead   []string
	refused []wire.OutboxRefusal
}

func (s *Server) transfer(c *call, n wire.OutboxNumber) *transfer {
	return &transfer{s: s, c: c, n: n, slot: s.book.slot(c.ID, n.Class)}
}

// begin reads the position. The caller holds the slot.
func (t *transfer) begin() {
	var former *position
	t.at, former = t.s.book.of(t.slot, t.c.ID, t.n.Class, t.n.ID)
	if former == nil || former.upTo == 0 {
		return
	}
	t.s.log.Warn("a sender has another outbox", zap.String("party", t.c.ID), zap.String("class", t.n.Class), zap.Uint64("stood_at", former.upTo))
	t.s.cfg.Alerts.Raise(alert.Alert{Code: alert.StateAltered, Time: t.s.cfg.Now(), DeviceID: t.c.DeviceID,
		Detail: fmt.Sprintf("%s has another outbox (replaced, or restored from a backup): its class %s stood at %d and begins anew", t.c.ID, t.n.Class, former.upTo)})
}

// check computes the digests of all items and the chain over them before
// anything has an effect.
func (t *transfer) check(items []wire.OutboxItem, inOrder bool) (digests [][sm3.Size]byte, why string) {
	digests = make([][sm3.Size]byte, len(items))
	next, head := t.n.From, t.at.head
	for i := range items {
		it := &items[i]
		if err := it.Check(); err != nil {
			return nil, err.Error()
		}
		if !inOrder && it.Type == "" || inOrder && it.Seq != next || it.Seq < next {
			return nil, fmt.Sprintf("item %d is not in its place", it.Seq)
		}
		next = it.Last() + 1
		switch {
		case it.Type != "":
			d, err := wire.OutboxDigest(it.Type, it.MsgID, it.Ext, it.Body)
			if err != nil {
				return nil, err.Error()
			}
			digests[i] = d
			head = head.Record(it.Seq, d)
		case it.SM3 != "":
			d, _ := wire.ParseOutboxHead(it.SM3) // Check has read it
			digests[i] = d
			head = head.Record(it.Seq, d)
		default:
			head = head.Gap(it.Seq, it.To, it.Count, it.Reason)
		}
	}
	if next != t.n.To+1 {
		return nil, "the items end elsewhere"
	}
	if inOrder && head.String() != t.n.Head {
		return nil, "the chain value is not that of the items"
	}
	return digests, ""
}

// item gives one item its effect and reports whether the next may follow.
func (t *transfer) item(ctx context.Context, it *wire.OutboxItem, digest [sm3.Size]byte, inOrder bool) bool {
	have, there := t.at.ahead[it.Seq]
	switch {
	case it.To != 0:
		t.gap(it)
		return true
	case there && have == digest: // sent ahead before
		if inOrder {
			t.move(it.Seq, t.at.head.Record(it.Seq, digest))
		} else {
			t.ahead = append(t.ahead, strconv.FormatUint(it.Seq, 10))
		}
		return true
	case there && it.SM3 == "": // two records under one number: the sender's memory is not the one that was
		t.refused = append(t.refused, wire.OutboxRefusal{Seq: it.Seq, Result: reason.MessageConflict.Result()})
		return false
	case it.SM3 != "" || there:
		return false // we do not have it: it must come in full
	case !inOrder && it.Seq <= t.at.upTo:
		return true
	case !inOrder && len(t.at.ahead) >= maxAhead:
		return false
	}
	f := t.s.effects(t.c.Kind)[it.Type]
	a := refuse("T5", reason.MessageInvalid, it.Type+" in an outbox")
	if f != nil {
		h := envelope.Header{MsgType: it.Type, MsgID: it.MsgID, Sender: t.c.Header.Sender, Timestamp: t.c.Header.Timestamp, Ext: it.Ext}
		a = f(ctx, &call{t.c.peer, &envelope.Message{Header: h, Body: it.Body, Signer: t.c.Signer}})
	}
	if transient(a.reason) {
		return false
	}
	t.s.audit.Write(t.s.record(t.c.peer, it.Type, a))
	if a.reason != reason.OK {
		t.refused = append(t.refused, wire.OutboxRefusal{Seq: it.Seq, Result: a.reason.Result()})
	}
	t.record(it.Seq, digest, inOrder, a)
	return true
}

// record makes the line of a record that had its effect, and moves.
func (t *transfer) record(seq uint64, digest [sm3.Size]byte, inOrder bool, a answer) {
	p := &place{ID: t.n.ID, Class: t.n.Class}
	if inOrder {
		t.at.upTo, t.at.head = seq, t.at.head.Record(seq, digest)
		p.UpTo, p.Head = seq, t.at.head.String()
	} else {
		if t.at.ahead == nil {
			t.at.ahead = map[uint64][sm3.Size]byte{}
		}
		t.at.ahead[seq] = digest
		p.Ahead, p.SM3 = seq, wire.OutboxHead(digest).String()
		t.ahead = append(t.ahead, strconv.FormatUint(seq, 10))
	}
	if a.keep == nil || a.reason != reason.OK {
		if t.behind = inOrder; !inOrder {
			t.line(p, nil)
		}
		return
	}
	line := a.keep(p)
	t.lines = append(t.lines, line...)
	t.alerts = append(t.alerts, line)
	t.applies(p, nil)
	t.behind = false
}

// move goes on without a line of its own; commit writes one at the end.
func (t *transfer) move(upTo uint64, head wire.OutboxHead) {
	t.at.upTo, t.at.head, t.behind = upTo, head, true
}

// gap takes the sender's word for what never comes, and keeps it.
func (t *transfer) gap(it *wire.OutboxItem) {
	head := t.at.head.Gap(it.Seq, it.To, it.Count, it.Reason)
	if it.Reason == wire.GapNote || it.Reason == wire.GapSettled {
		t.move(it.To, head)
		return
	}
	t.at.upTo, t.at.head, t.behind = it.To, head, false
	g := &OutboxGap{From: it.Seq, To: it.To, Count: it.Count, Reason: it.Reason, At: it.At, Told: t.s.cfg.Now()}
	t.line(&place{ID: t.n.ID, Class: t.n.Class, UpTo: it.To, Head: head.String()}, g)
	r := t.s.record(t.c.peer, "outbox gap", accept())
	r.Kind, r.Allowed, r.Result = audit.System, false, "lost"
	r.Detail = fmt.Sprintf("%s %d to %d: %d records, %s", t.n.Class, g.From, g.To, g.Count, g.Reason)
	t.s.audit.Write(r)
	t.s.log.Warn("reports of a sender are lost", zap.String("party", t.c.ID), zap.String("detail", r.Detail))
}

func (t *transfer) line(p *place, g *OutboxGap) {
	t.lines = appendLine(t.lines, placeLine{Received: t.s.cfg.Now(), Sender: t.c.ID, Gap: g, Outbox: p})
	t.applies(p, g)
}

func (t *transfer) applies(p *place, g *OutboxGap) {
	sender, now := t.c.ID, t.s.cfg.Now()
	t.moves = append(t.moves, func() { t.s.book.apply(sender, p, g, now) })
}

// commit puts the lines on disk and moves the position.
func (t *transfer) commit() error {
	if t.behind {
		t.line(&place{ID: t.n.ID, Class: t.n.Class, UpTo: t.at.upTo, Head: t.at.head.String()}, nil)
	}
	if len(t.lines) == 0 {
		return nil
	}
	return t.s.book.files[t.n.Class].append(t.lines, func() {
		for _, f := range t.moves {
			f()
		}
		for _, line := range t.alerts {
			t.s.told(t.n.Class, line)
		}
	})
}

// answer adds what the control center has, as its disk has it.
func (t *transfer) answer(a answer) answer {
	ack, ok := t.s.book.ack(t.c.ID, t.n.Class, t.n.ID)
	if !ok {
		ack = wire.OutboxAck{Class: t.n.Class, Head: wire.OutboxStart(t.n.ID, t.c.ID, t.n.Class).String()}
	}
	if !transient(a.reason) {
		ack.Ahead, ack.Refused = t.ahead, t.refused
	}
	a.ext = a.ext.with(wire.ExtOutbox, wire.OutboxAcks{ID: t.n.ID, Acks: []wire.OutboxAck{ack}})
	return a
}

// gatewayAudit is X.audit: an audit record of a gateway.
func (s *Server) gatewayAudit(_ context.Context, c *call) answer {
	var r struct {
		Kind      string `json:"kind"`
		GatewayID string `json:"gateway_id"`
	}
	if err := json.Unmarshal(c.Body, &r); err != nil || r.Kind == "" || len(c.Body) > 64<<10 {
		return refuse("T5", reason.MessageInvalid, "audit record")
	}
	if r.GatewayID != "" && r.GatewayID != c.ID {
		return refuse("T5", reason.MessageSender, "gateway_id "+r.GatewayID)
	}
	a, now := accept(), s.cfg.Now()
	a.class = "audit"
	a.keep = func(p *place) []byte {
		return appendLine(nil, auditLine{Received: now, Sender: c.ID, MsgID: c.Header.MsgID, Record: json.RawMessage(c.Body), Outbox: p})
	}
	return a
}
