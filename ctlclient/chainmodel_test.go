package ctlclient

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm3"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"
	"pgregory.net/rapid"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// The model's control center: docs/binding-v1.md §7.1 in memory, too simple to
// be wrong. It is for one goroutine.
type modelCenter struct {
	modelDisk
	once   map[string]modelReply // by msgId: forgotten by a restart
	broken bool                  // it fails at everything
}

// modelDisk is what a backup of it has.
type modelDisk struct {
	id      string
	upTo    uint64
	head    wire.OutboxHead
	ahead   map[uint64][sm3.Size]byte
	effects []string // msgIds, in order
	gaps    uint64   // records that the sender said are lost
}

type modelReply struct {
	acks wire.OutboxAcks
	err  *RefusedError // set: the message was refused
}

func (d *modelDisk) clone() modelDisk {
	c := *d
	c.ahead, c.effects = maps.Clone(d.ahead), slices.Clone(d.effects)
	return c
}

// request is one message on its way.
type request struct {
	h    envelope.Header
	body []byte
	n    wire.OutboxNumber
}

const modelSender = "GW000000001"

func (m *modelCenter) take(q request) modelReply {
	single := q.h.MsgType != wire.TypeOutbox
	if single {
		if r, ok := m.once[q.h.MsgID]; ok {
			return r
		}
	}
	r := m.judge(q, single)
	if single && (r.err == nil || r.err.Reason != reason.MessageTooLarge && r.err.Reason != reason.InternalError) {
		m.once[q.h.MsgID] = r
	}
	return r
}

func (m *modelCenter) judge(q request, single bool) (r modelReply) {
	if m.id != q.n.ID && q.n.Class != "" { // another outbox of this sender: it begins anew
		m.id, m.upTo, m.head, m.ahead = q.n.ID, 0, wire.OutboxStart(q.n.ID, modelSender, "alert"), map[uint64][sm3.Size]byte{}
	}
	ack := wire.OutboxAck{Class: "alert"}
	defer func() {
		if r.acks.ID = q.n.ID; m.id == q.n.ID {
			ack.UpTo, ack.Head = m.upTo, m.head.String()
			r.acks.Acks = append(r.acks.Acks, ack)
		}
	}()
	if q.n.Class == "" {
		return r
	}
	var box wire.Outbox
	if !single {
		if err := json.Unmarshal(q.body, &box); err != nil {
			panic(err)
		}
	} else {
		box.Items = []wire.OutboxItem{{Seq: q.n.From, Type: q.h.MsgType, MsgID: q.h.MsgID, Body: q.body}}
		if strings.Contains(string(q.body), "too large") {
			r.err = &RefusedError{Reason: reason.MessageTooLarge, Result: reason.MessageTooLarge.Result()}
			return r
		}
	}
	inOrder := q.n.Prev != ""
	if inOrder && (q.n.From != m.upTo+1 || q.n.Prev != m.head.String()) {
		if single && q.n.From <= m.upTo { // had before
			return r
		}
		if !single {
			return r
		}
		inOrder = false // as a message of its own it still has its effect, once
	}
	for _, it := range box.Items {
		if m.broken || strings.Contains(string(it.Body), "fails for ever") { // as the reference does: it stops there
			if single {
				r.err = &RefusedError{Reason: reason.InternalError, Result: reason.InternalError.Result()}
			}
			return r
		}
		if it.To != 0 {
			m.head, m.upTo = m.head.Gap(it.Seq, it.To, it.Count, it.Reason), it.To
			if it.Reason != wire.GapNote && it.Reason != wire.GapSettled {
				m.gaps += it.Count
			}
			continue
		}
		var digest [sm3.Size]byte
		if it.SM3 != "" {
			d, _ := wire.ParseOutboxHead(it.SM3)
			digest = d
		} else {
			d, err := wire.OutboxDigest(it.Type, it.MsgID, it.Ext, it.Body)
			if err != nil {
				panic(err)
			}
			digest = d
		}
		have, there := m.ahead[it.Seq]
		switch {
		case there && have != digest:
			ack.Refused = append(ack.Refused, wire.OutboxRefusal{Seq: it.Seq, Result: reason.MessageConflict.Result()})
			return r
		case there, !inOrder && it.Seq <= m.upTo: // it had its effect
		case it.SM3 != "":
			return r // it must come in full
		case strings.Contains(string(it.Body), "refused for good"):
			ack.Refused = append(ack.Refused, wire.OutboxRefusal{Seq: it.Seq, Result: reason.MessageInvalid.Result()})
			if single {
				r.err = &RefusedError{Reason: reason.MessageInvalid, Result: reason.MessageInvalid.Result()}
			}
		default:
			m.effects = append(m.effects, it.MsgID)
		}
		if inOrder {
			m.head, m.upTo = m.head.Record(it.Seq, digest), it.Seq
			delete(m.ahead, it.Seq)
		} else {
			if it.Seq > m.upTo {
				m.ahead[it.Seq] = digest
			}
			ack.Ahead = append(ack.Ahead, strconv.FormatUint(it.Seq, 10))
		}
	}
	return r
}

// path is what lies between sender and center: the test draws what becomes of
// each message.
type path struct {
	m      *modelCenter
	draw   func() string
	late   []request // on their way for longer than their sender waited
	trials int
}

func (p *path) post(_ context.Context, _ string, h envelope.Header, body []byte, _ bool) (*envelope.Message, error) {
	q := request{h: h, body: body}
	if err := json.Unmarshal(h.Ext[wire.ExtOutbox], &q.n); err != nil {
		panic(err)
	}
	p.trials++
	switch p.draw() {
	case "request lost":
		return nil, fmt.Errorf("%w: lost", ErrDown)
	case "request late":
		p.late = append(p.late, q)
		return nil, fmt.Errorf("%w: no answer in time", ErrDown)
	case "answer lost":
		p.m.take(q)
		return nil, fmt.Errorf("%w: no answer", ErrDown)
	case "twice": // hedged: the second answer is the first to arrive
		p.m.take(q)
	}
	r := p.m.take(q)
	raw, err := json.Marshal(r.acks)
	if err != nil {
		panic(err)
	}
	m := &envelope.Message{Header: envelope.Header{Sender: "CTL00000001", MsgType: "T5", Ext: map[string]jsontext.Value{wire.ExtOutbox: raw}}, Raw: []byte("{}")}
	if r.err != nil {
		no := *r.err
		if no.Reason == reason.InternalError {
			return nil, &failedError{no.Result}
		}
		if no.Reason != reason.MessageTooLarge {
			no.reply = m
		}
		return nil, &no
	}
	return m, nil
}

// The chain sender against a model: messages and acknowledgements are lost,
// doubled, late; the control center forgets what it answered, or is restored
// from a backup; the sender starts anew; records are too large, or refused for
// good. Whatever happened, at the end every record had its effect once, or is
// named, and nothing waits.
func TestR2_ChainSenderAgainstAModel(t *testing.T) {
	checks := flag.Lookup("rapid.checks")
	if was := checks.Value.String(); os.Getenv("YUMEN_LONG") == "" && was == checks.DefValue { // each is some 90 ms of disk
		if err := checks.Value.Set("15"); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = checks.Value.Set(was) }()
	}
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			r.Fatal(err)
		}
		defer os.RemoveAll(dir)
		faults := true
		center := &modelCenter{once: map[string]modelReply{}}
		way := &path{m: center, draw: func() string {
			if !faults {
				return "through"
			}
			return rapid.SampledFrom([]string{"through", "through", "through", "request lost", "request late", "answer lost", "twice"}).Draw(r, "fate")
		}}
		var own []alert.Alert
		rep := &reporter{sender: modelSender, post: way.post, log: zap.NewNop(), now: time.Now, path: map[string]string{"T11": "/alerts"}, sent: map[string]time.Time{},
			own: alert.Func(func(a alert.Alert) { own = append(own, a) })}
		var d *Durable
		open := func() {
			d = NewDurable(DurableConfig{Dir: dir, Key: fixedKey, Reserve: -1})
			if err := d.Open(); err != nil {
				r.Fatal(err)
			}
			rep.out = d
		}
		open()
		defer func() { d.Close() }()
		var ch *chain
		ctx := context.Background()
		var ids []string
		kind := map[string]string{}
		backup := center.clone()
		restored := false
		r.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				for range rapid.IntRange(1, 6).Draw(t, "n") {
					id := fmt.Sprintf("m%05d", len(ids))
					ids = append(ids, id)
					text, pad := "plain", 0
					switch rapid.IntRange(0, 19).Draw(t, "kind") {
					case 0:
						text, pad = "too large", stretchBytes
					case 1:
						text = "refused for good"
					}
					kind[id] = text
					body := fmt.Sprintf(`{"exceptionAlertType":"3.001","text":%q,"pad":%q}`, text, strings.Repeat("x", pad))
					raw, err := json.Marshal(Report{Type: "T11", MsgID: id, At: time.Now(), Body: jsontext.Value(body)})
					if err == nil {
						_, err = d.Append(ctx, ClassAlert, raw)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			},
			"session": func(t *rapid.T) { ch, _ = rep.newChain(ctx) },
			"send": func(t *rapid.T) {
				if ch != nil && ch.run(ctx, ClassAlert, true) != nil {
					ch = nil // as the link does
				}
			},
			"send ahead": func(t *rapid.T) {
				if ch == nil {
					return
				}
				at, _ := ch.position(ClassAlert)
				from := at.upTo + rapid.Uint64Range(0, 8).Draw(t, "from")
				s, _, err := ch.newer(ClassAlert, from, rapid.IntRange(1, 4).Draw(t, "n"))
				if err != nil {
					t.Fatal(err)
				}
				if len(s.items) > 0 && ch.sendAhead(ctx, ClassAlert, s) != nil {
					ch = nil
				}
			},
			"arrive late": func(t *rapid.T) {
				if n := len(way.late); n > 0 {
					i := rapid.IntRange(0, n-1).Draw(t, "which")
					center.take(way.late[i])
					way.late = slices.Delete(way.late, i, i+1)
				}
			},
			"restart center": func(t *rapid.T) { center.once = map[string]modelReply{} },
			"back up center": func(t *rapid.T) { backup = center.clone() },
			"restore center": func(t *rapid.T) {
				center.modelDisk, center.once, restored = backup.clone(), map[string]modelReply{}, true
				ch = nil // its connections ended with it
			},
			"restart sender": func(t *rapid.T) {
				ch = nil
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				open()
			},
			"": func(*rapid.T) {},
		})

		faults = false
		for try := 0; ; try++ {
			if ch == nil {
				if ch, err = rep.newChain(ctx); err != nil {
					ch = nil
				}
			}
			if ch != nil && ch.run(ctx, ClassAlert, true) == nil {
				break
			}
			if ch = nil; try > 50 {
				r.Fatalf("the class is blocked: %v; center %+v", err, center.modelDisk)
			}
		}
		if at := ch.d.acks.at(ClassAlert, modelSender); at.upTo != center.upTo || at.upTo > 0 && at.head != center.head {
			r.Errorf("the sender stands at %d %s, the center at %d %s", at.upTo, at.head, center.upTo, center.head)
		}
		count := map[string]int{}
		for _, id := range center.effects {
			count[id]++
		}
		large := uint64(0)
		for _, id := range ids {
			n := count[id]
			switch kind[id] {
			case "too large":
				large++
				if n != 0 {
					r.Errorf("%s had its effect", id)
				}
			case "refused for good":
				if n != 0 {
					r.Errorf("%s was refused and had its effect", id)
				}
			default:
				if n > 1 || n == 0 && !restored {
					r.Errorf("%s had its effect %d times", id, n)
				}
			}
		}
		forks := 0
		for _, a := range own {
			if a.Code == alert.StateAltered && strings.HasPrefix(a.Detail, "outbox: ") {
				forks++
			}
		}
		if forks > 0 && !restored {
			r.Errorf("%d forks without a restored backup: %+v", forks, own)
		}
		if !restored && center.gaps != large {
			r.Errorf("%d records were too large, the center was told of %d", large, center.gaps)
		}
		if err := d.acks.save(); err != nil {
			r.Fatal(err)
		}
		if st := d.Stats()[ClassAlert]; st.Pending != 0 && !onlyNotes(d) {
			r.Errorf("%d records wait: %+v", st.Pending, st)
		}
	})
}

// A record that is too large goes alone, also when a gap follows it: only so is
// it known which one was refused, and the class goes on.
func TestR24_TooLargeBeforeAGapGoesAlone(t *testing.T) {
	center := &modelCenter{once: map[string]modelReply{}}
	way := &path{m: center, draw: func() string { return "through" }}
	d := NewDurable(DurableConfig{Dir: t.TempDir(), Key: fixedKey, Reserve: -1})
	if err := d.Open(); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	rep := &reporter{sender: modelSender, post: way.post, log: zap.NewNop(), now: time.Now, path: map[string]string{"T11": "/alerts"}, sent: map[string]time.Time{}, own: alert.Discard, out: d}
	for i, text := range []string{"plain", "too large", "too large", "plain"} {
		body := fmt.Sprintf(`{"text":%q,"pad":%q}`, text, strings.Repeat("x", strings.Count(text, " ")*stretchBytes))
		raw, err := json.Marshal(Report{Type: "T11", MsgID: fmt.Sprint("m", i), At: time.Now(), Body: jsontext.Value(body)})
		if err == nil {
			_, err = d.Append(t.Context(), ClassAlert, raw)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ch, err := rep.newChain(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := ch.newer(ClassAlert, 2, 1)
	if err == nil {
		err = ch.sendAhead(t.Context(), ClassAlert, s) // number 3 is a gap from here on
	}
	if err == nil {
		err = ch.run(t.Context(), ClassAlert, true)
	}
	if err != nil || center.gaps != 2 || !slices.Equal(center.effects, []string{"m0", "m3"}) || center.upTo < 4 {
		t.Errorf("%v; the center stands at %d, knows of %d gaps, took %q", err, center.upTo, center.gaps, center.effects)
	}
}

// onlyNotes reports whether nothing but gap records waits.
func onlyNotes(d *Durable) bool {
	entries, err := d.Next(ClassAlert, 0, 10)
	return err == nil && len(entries) == 0
}
