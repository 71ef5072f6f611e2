package control

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	jsonx "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/wire"
)

const boxID = "00112233445566778899aabbccddeeff"

// box is an outbox written by hand from the binding.
type box struct {
	c    *client
	id   string
	seq  uint64
	head wire.OutboxHead
}

func (c *client) box(id string) *box {
	return &box{c: c, id: id, head: wire.OutboxStart(id, c.id, "alert")}
}

func (b *box) alert(n uint64) wire.OutboxItem {
	body := fmt.Sprintf(`{"gatewayId":%q,"deviceId":%q,"timestamp":"2026-01-02T03:04:05Z","exceptionAlertType":"1.001","exceptionAlertLevel":2,"exceptionAlertContent":"number %d"}`, b.c.id, b.c.device, n)
	return wire.OutboxItem{Seq: n, Type: "T11", MsgID: fmt.Sprintf("box-%s-%d", b.id[:4], n), Body: jsontext.Value(body)}
}

func (b *box) digest(it wire.OutboxItem) [32]byte {
	b.c.w.t.Helper()
	d, err := wire.OutboxDigest(it.Type, it.MsgID, it.Ext, it.Body)
	if err != nil {
		b.c.w.t.Fatal(err)
	}
	return d
}

// ahead makes the number of items that jump the queue.
func (b *box) ahead(items ...wire.OutboxItem) wire.OutboxNumber {
	return wire.OutboxNumber{ID: b.id, Class: "alert", From: items[0].Seq, To: items[len(items)-1].Last()}
}

// next makes the number of items in order and moves on.
func (b *box) next(items ...wire.OutboxItem) wire.OutboxNumber {
	n := wire.OutboxNumber{ID: b.id, Class: "alert", From: b.seq + 1, Prev: b.head.String()}
	for _, it := range items {
		switch {
		case it.To > 0:
			b.head = b.head.Gap(it.Seq, it.To, it.Count, it.Reason)
		case it.SM3 != "":
			d, err := wire.ParseOutboxHead(it.SM3)
			if err != nil {
				b.c.w.t.Fatal(err)
			}
			b.head = b.head.Record(it.Seq, d)
		default:
			b.head = b.head.Record(it.Seq, b.digest(it))
		}
		b.seq = it.Last()
	}
	n.To, n.Head = b.seq, b.head.String()
	return n
}

// send posts items under n and returns the position in the answer.
func (b *box) send(n wire.OutboxNumber, items ...wire.OutboxItem) (status int, ack wire.OutboxAck) {
	b.c.w.t.Helper()
	body, err := wire.EncodeExtension(wire.Outbox{Items: items})
	if err != nil {
		b.c.w.t.Fatal(err)
	}
	return b.post("/outbox", wire.TypeOutbox, "", n, body)
}

// one posts the item as its own table's message.
func (b *box) one(n wire.OutboxNumber, it wire.OutboxItem) (status int, ack wire.OutboxAck) {
	b.c.w.t.Helper()
	return b.post("/alerts", it.Type, it.MsgID, n, it.Body)
}

func (b *box) post(path, msgType, msgID string, n wire.OutboxNumber, body []byte) (status int, ack wire.OutboxAck) {
	t := b.c.w.t
	t.Helper()
	raw, err := jsonx.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	env, err := b.c.send.Seal(envelope.Header{MsgType: msgType, MsgID: msgID, Receiver: "CTL00000001", Ext: map[string]jsontext.Value{wire.ExtOutbox: raw}}, body, nil)
	if err != nil {
		t.Fatal(err)
	}
	status, _ = b.c.post(path, env)
	var acks wire.OutboxAcks
	if ext, ok := b.c.answered.Header.Ext[wire.ExtOutbox]; ok {
		if err := jsonx.Unmarshal(ext, &acks); err != nil || acks.ID != n.ID {
			t.Fatalf("acknowledgement %s: %v", ext, err)
		}
	}
	for _, a := range acks.Acks {
		if a.Class == "alert" {
			ack = a
		}
	}
	return status, ack
}

// kept returns the contents of the alerts that are on disk, in order.
func (w *world) kept() (out []string) {
	w.t.Helper()
	raw, err := os.ReadFile(filepath.Join(w.cfg.DataDir, "alerts.jsonl"))
	if err != nil {
		w.t.Fatal(err)
	}
	for text := range strings.Lines(string(raw)) {
		var l alertLine
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			w.t.Fatal(err)
		}
		if l.Content != "" {
			out = append(out, strings.TrimPrefix(l.Content, "number "))
		}
	}
	return out
}

// TestR2_ControlTakesAnOutboxOnceAndInOrder is the receiver of binding §7.1 by
// hand, over a restart.
func TestR2_ControlTakesAnOutboxOnceAndInOrder(t *testing.T) {
	w := newWorld(t)
	gw := w.enrol(NewDevice{Kind: "gateway"})
	gw.identify()
	b := gw.box(boxID)
	want := func(what string, status int, a wire.OutboxAck, upTo uint64, head wire.OutboxHead) {
		t.Helper()
		if status != 200 || a.UpTo != upTo || a.Head != head.String() {
			t.Fatalf("%s: status %d, %+v, want %d %s", what, status, a, upTo, head)
		}
	}
	// 1 A single, in order.
	it := b.alert(1)
	n := b.next(it)
	s, a := b.one(n, it)
	want("1", s, a, 1, b.head)
	// 2 A stretch with a gap in it.
	items := []wire.OutboxItem{b.alert(2), {Seq: 3, To: 5, Count: 2, Reason: "over_cap"}, b.alert(6)}
	n = b.next(items...)
	s, a = b.send(n, items...)
	want("2 to 6", s, a, 6, b.head)
	// 3 The same again, as after a lost answer: no second effect.
	s, a = b.send(n, items...)
	want("again", s, a, 6, b.head)
	// 4 Ahead: it has its effect, and the position stays.
	late := b.alert(9)
	s, a = b.one(b.ahead(late), late)
	want("9 ahead", s, a, 6, b.head)
	if len(a.Ahead) != 1 || a.Ahead[0] != "9" {
		t.Errorf("ahead %v", a.Ahead)
	}
	// 5 A digest that is not known ends the message before it.
	at, head := b.seq, b.head
	d8 := b.digest(b.alert(8))
	items = []wire.OutboxItem{b.alert(7), {Seq: 8, SM3: wire.OutboxHead(d8).String()}}
	n = b.next(items...)
	b.seq, b.head = at, head
	b.next(items[0])
	s, a = b.send(n, items...)
	want("7, and 8 by an unknown digest", s, a, 7, b.head)

	// 6 After a restart all of it is still known.
	w.stop()
	w.start()
	gw.base = w.url(0) + "/ztna/v1/gateway"
	gw.identify()
	d9 := b.digest(late)
	items = []wire.OutboxItem{b.alert(8), {Seq: 9, SM3: wire.OutboxHead(d9).String()}, b.alert(10)}
	n = b.next(items...)
	s, a = b.send(n, items...)
	want("8 to 10", s, a, 10, b.head)
	s, a = b.one(b.ahead(b.alert(9)), b.alert(9))
	want("9 again", s, a, 10, b.head)

	// 7 What does not continue has no effect, what lies about itself is refused.
	other := &box{c: gw, id: boxID, seq: 20}
	far := b.alert(21)
	s, a = other.send(other.next(far), far)
	want("21 without 11", s, a, 10, b.head)
	lie := b.alert(11)
	n = wire.OutboxNumber{ID: boxID, Class: "alert", From: 11, To: 11, Prev: b.head.String(), Head: strings.Repeat("0", 64)}
	if s, _ = b.send(n, lie); s != 400 {
		t.Errorf("a wrong chain value: status %d", s)
	}
	// 8 Another record under a number that went ahead.
	x := b.alert(15)
	b.one(b.ahead(x), x)
	y := b.alert(15)
	y.MsgID = "another"
	if s, _ = b.one(b.ahead(y), y); s != 400 || !strings.Contains(string(gw.answered.Body), "YM-605") {
		t.Errorf("two records under one number: %d %s", s, gw.answered.Body)
	}
	if got, want := strings.Join(w.kept(), " "), "1 2 6 9 7 8 10 15"; got != want {
		t.Errorf("kept %s, want %s", got, want)
	}
	var all []OutboxPosition
	w.do("GET", "/v1/outbox", nil, &all)
	if len(all) != 1 || all[0].UpTo != 10 || all[0].Lost != 2 || len(all[0].Gaps) != 1 || all[0].Gaps[0].From != 3 || all[0].Gaps[0].To != 5 || all[0].Ahead != 1 {
		t.Errorf("verb: %+v", all)
	}

	// 9 Another outbox of the same sender begins anew, and that is told.
	fresh := gw.box("ffeeddccbbaa99887766554433221100")
	it = fresh.alert(1)
	s, a = fresh.one(fresh.next(it), it)
	want("another outbox", s, a, 1, fresh.head)
	w.do("GET", "/v1/outbox", nil, &all)
	if len(all) != 1 || all[0].UpTo != 1 || all[0].Former != 1 || all[0].Lost != 2 {
		t.Errorf("verb: %+v", all)
	}
}

// TestReportFileKeepsPositionsWhenItIsSetAside: a new file begins with all
// positions, and half a last line of a crash is cut off.
func TestReportFileKeepsPositionsWhenItIsSetAside(t *testing.T) {
	dir := t.TempDir()
	open := func() *book {
		b, err := openBook(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range b.files {
			f.most = 2000
		}
		return b
	}
	b := open()
	head := wire.OutboxStart(boxID, "GW000000001", "status")
	for i := range uint64(100) {
		head = head.Record(i+1, [32]byte{byte(i)})
		for _, class := range []string{"status", "alert"} {
			p := &place{ID: boxID, Class: class, UpTo: i + 1, Head: head.String()}
			line := appendLine(nil, placeLine{Sender: "GW000000001", Outbox: p})
			if err := b.files[class].append(line, func() { b.apply("GW000000001", p, nil, time.Unix(1, 0)) }); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
	aside, _ := filepath.Glob(filepath.Join(dir, "alerts.jsonl.*"))
	gone, _ := filepath.Glob(filepath.Join(dir, "reports.jsonl.*"))
	if len(aside) == 0 || len(gone) != 0 {
		t.Fatalf("%d alert files and %d position files were set aside", len(aside), len(gone))
	}
	f, err := os.OpenFile(filepath.Join(dir, "alerts.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, `{"sender":"GW000000001","outbox":{"id":"`)
	f.Close()
	for round := range 2 {
		b = open()
		for _, p := range b.positions() {
			if p.UpTo != 100 || p.Head != head.String() {
				t.Errorf("round %d: %s stands at %d", round, p.Class, p.UpTo)
			}
		}
		if len(b.positions()) != 2 {
			t.Errorf("round %d: %d positions", round, len(b.positions()))
		}
		if err := b.close(); err != nil {
			t.Fatal(err)
		}
		// A crash between two renames leaves only what was set aside.
		if round == 0 {
			if err := os.Rename(filepath.Join(dir, "alerts.jsonl"), filepath.Join(dir, "alerts.jsonl.29990101T000000.000")); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A record that goes ahead of its turn and comes again in order as the same
// message is answered with where the outbox is by then, not with the first
// answer: its sender would believe that what came between is forgotten.
func TestR2_ARepeatSaysHowFarTheOutboxIsNow(t *testing.T) {
	w := newWorld(t)
	gw := w.enrol(NewDevice{Kind: "gateway"})
	gw.identify()
	b := gw.box(boxID)
	one, two, three := b.alert(1), b.alert(2), b.alert(3)
	if status, ack := b.one(b.next(one), one); status != 200 || ack.UpTo != 1 {
		t.Fatalf("first: status %d, %+v", status, ack)
	}
	if status, ack := b.one(b.ahead(three), three); status != 200 || ack.UpTo != 1 || len(ack.Ahead) != 1 {
		t.Fatalf("third, ahead: status %d, %+v", status, ack)
	}
	if status, ack := b.one(b.next(two), two); status != 200 || ack.UpTo != 2 {
		t.Fatalf("second: status %d, %+v", status, ack)
	}
	if status, ack := b.one(b.next(three), three); status != 200 || ack.UpTo != 3 || ack.Head != b.head.String() {
		t.Errorf("third again, in order: status %d, %+v, want 3 with %s", status, ack, b.head)
	}
	if status, ack := b.one(b.ahead(two), two); status != 200 || ack.UpTo != 3 {
		t.Errorf("second again: status %d, %+v, want 3", status, ack)
	}
	if got := w.kept(); strings.Join(got, " ") != "1 3 2" {
		t.Errorf("kept %v, want each once", got)
	}
}
