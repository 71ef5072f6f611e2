package control

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/yumen-zt/yumen/wire"
)

// book knows how far the control center has the outbox of each sender. It is
// rebuilt at the start from the report files, whose lines carry it.
type book struct {
	files map[string]*reportFile // by class

	mu    sync.Mutex
	slots map[slotKey]*slot // guarded by mu
}

type slotKey struct{ sender, class string }

// slot is one class of one sender.
type slot struct {
	busy sync.Mutex // held while a message of it is at work
	at   position   // guarded by book.mu
}

// position says what the control center has of one class of an outbox.
type position struct {
	id     string
	upTo   uint64
	head   wire.OutboxHead
	ahead  map[uint64][sm3.Size]byte // records beyond upTo; at most maxAhead
	gaps   []OutboxGap               // the newest
	lost   uint64                    // records in gaps
	former int                       // other outboxes that this sender had
	seen   time.Time
}

const (
	maxAhead    = 4096
	maxGapsKept = 256
)

// place is a position in a line of a report file.
type place struct {
	ID    string `json:"id"`
	Class string `json:"class"`
	UpTo  uint64 `json:"up_to,omitempty"`
	Head  string `json:"head,omitempty"`
	Ahead uint64 `json:"ahead,omitempty"` // a record beyond UpTo, with its digest
	SM3   string `json:"sm3,omitempty"`
}

// OutboxGap is a stretch of a sender's outbox that never came.
type OutboxGap struct {
	From   uint64    `json:"from"`
	To     uint64    `json:"to"`
	Count  uint64    `json:"count"` // records lost in it
	Reason string    `json:"reason"`
	At     string    `json:"at,omitempty"` // the sender's time
	Told   time.Time `json:"told"`
}

// OutboxPosition is one class of one sender, for the verb.
type OutboxPosition struct {
	Sender string      `json:"sender"`
	Class  string      `json:"class"`
	ID     string      `json:"outbox"`
	UpTo   uint64      `json:"up_to"`
	Head   string      `json:"head"`
	Ahead  int         `json:"ahead"`
	Lost   uint64      `json:"lost"`
	Gaps   []OutboxGap `json:"gaps"`
	Former int         `json:"former_outboxes"`
	Seen   time.Time   `json:"seen"`
}

// snapshot is a position as a file begins with it.
type snapshot struct {
	OutboxPosition
	AheadOf map[uint64]string `json:"ahead_of,omitempty"`
}

// openBook opens the report files of dir.
func openBook(dir string) (b *book, err error) {
	b = &book{files: map[string]*reportFile{}, slots: map[slotKey]*slot{}}
	for _, one := range []struct {
		name    string
		most    int64
		compact bool
		classes []string
	}{
		{"alerts.jsonl", maxAuditBytes, false, []string{"alert"}},
		{"gateway-audit.jsonl", maxAuditBytes, false, []string{"audit"}},
		{"reports.jsonl", 4 << 20, true, []string{"identity", "status"}},
	} {
		f, err := openReportFile(filepath.Join(dir, one.name), one.most, one.compact, func() []byte { return b.snapshots(one.classes) }, b.takeLine)
		if err != nil {
			b.close()
			return nil, err
		}
		for _, c := range one.classes {
			b.files[c] = f
		}
	}
	return b, nil
}

func (b *book) close() (err error) {
	closed := map[*reportFile]bool{}
	for _, f := range b.files {
		if !closed[f] {
			closed[f] = true
			if e := f.close(); e != nil {
				err = e
			}
		}
	}
	return err
}

// slot returns the slot of a class of a sender.
func (b *book) slot(sender, class string) *slot {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.slotHeld(sender, class)
}

func (b *book) slotHeld(sender, class string) *slot {
	k := slotKey{sender, class}
	s := b.slots[k]
	if s == nil {
		s = &slot{}
		b.slots[k] = s
	}
	return s
}

// of returns the position of outbox id in sl, which is nowhere when the sender
// had another outbox; former then is that one's position. The caller holds
// sl.busy.
func (b *book) of(sl *slot, sender, class, id string) (p position, former *position) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if sl.at.id == id {
		p = sl.at
		p.ahead = maps.Clone(p.ahead)
		return p, nil
	}
	p = position{id: id, head: wire.OutboxStart(id, sender, class)}
	if sl.at.id != "" {
		f := sl.at
		former = &f
	}
	return p, former
}

// apply moves a position as a line says.
func (b *book) apply(sender string, p *place, gap *OutboxGap, now time.Time) {
	head, err := wire.ParseOutboxHead(p.Head)
	b.mu.Lock()
	defer b.mu.Unlock()
	at := &b.slotHeld(sender, p.Class).at
	if at.id != p.ID {
		former := at.former
		if at.id != "" {
			former++
		}
		*at = position{id: p.ID, head: wire.OutboxStart(p.ID, sender, p.Class), former: former, gaps: at.gaps, lost: at.lost}
	}
	at.seen = now
	if p.UpTo > at.upTo && err == nil {
		at.upTo, at.head = p.UpTo, head
		for seq := range at.ahead {
			if seq <= at.upTo {
				delete(at.ahead, seq)
			}
		}
	}
	if digest, err := wire.ParseOutboxHead(p.SM3); err == nil && p.Ahead > at.upTo {
		if at.ahead == nil {
			at.ahead = map[uint64][sm3.Size]byte{}
		}
		at.ahead[p.Ahead] = digest
	}
	if gap != nil {
		at.lost += gap.Count
		if at.gaps = append(at.gaps, *gap); len(at.gaps) > maxGapsKept {
			at.gaps = slices.Delete(at.gaps, 0, len(at.gaps)-maxGapsKept)
		}
	}
}

// takeLine reads a line at the start. What is no line of ours says nothing.
func (b *book) takeLine(line []byte) {
	text := string(line)
	if !strings.Contains(text, `"outbox":`) {
		return
	}
	var s struct {
		Snapshot *snapshot `json:"snapshot"`
		placeLine
	}
	if json.Unmarshal(line, &s) != nil {
		return
	}
	if s.Outbox != nil {
		b.apply(s.Sender, s.Outbox, s.Gap, s.Received)
	}
	if s.Snapshot == nil {
		return
	}
	p := s.Snapshot
	head, err := wire.ParseOutboxHead(p.Head)
	if err != nil {
		return
	}
	at := position{id: p.ID, upTo: p.UpTo, head: head, gaps: p.Gaps, lost: p.Lost, former: p.Former, seen: p.Seen, ahead: map[uint64][sm3.Size]byte{}}
	for seq, text := range p.AheadOf {
		if d, err := wire.ParseOutboxHead(text); err == nil {
			at.ahead[seq] = d
		}
	}
	b.mu.Lock()
	b.slotHeld(p.Sender, p.Class).at = at
	b.mu.Unlock()
}

// snapshots returns the positions of classes as lines.
func (b *book) snapshots(classes []string) (lines []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, s := range b.slots {
		if s.at.id == "" || !slices.Contains(classes, k.class) {
			continue
		}
		ahead := map[uint64]string{}
		for seq, d := range s.at.ahead {
			ahead[seq] = wire.OutboxHead(d).String()
		}
		lines = appendLine(lines, struct {
			Snapshot snapshot `json:"snapshot"`
		}{snapshot{k.verb(&s.at), ahead}})
	}
	return lines
}

func (k slotKey) verb(p *position) OutboxPosition {
	return OutboxPosition{Sender: k.sender, Class: k.class, ID: p.id, UpTo: p.upTo, Head: p.head.String(), Ahead: len(p.ahead), Lost: p.lost,
		Gaps: append([]OutboxGap{}, p.gaps...), Former: p.former, Seen: p.seen}
}

// positions returns all, by sender and class.
func (b *book) positions() (out []OutboxPosition) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out = []OutboxPosition{}
	for k, s := range b.slots {
		if s.at.id != "" {
			out = append(out, k.verb(&s.at))
		}
	}
	slices.SortFunc(out, func(a, b OutboxPosition) int {
		if c := strings.Compare(a.Sender, b.Sender); c != 0 {
			return c
		}
		return strings.Compare(a.Class, b.Class)
	})
	return out
}

// ack returns the position of class in words of the wire.
func (b *book) ack(sender, class, id string) (a wire.OutboxAck, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.slots[slotKey{sender, class}]
	if s == nil || s.at.id != id {
		return a, false
	}
	return wire.OutboxAck{Class: class, UpTo: s.at.upTo, Head: s.at.head.String()}, true
}

// appendLine appends v as a line of JSON. It is for plain structs, which do not
// fail.
func appendLine(dst []byte, v any) []byte {
	line, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return append(append(dst, line...), '\n')
}
