package ctlclient

import (
	"github.com/emmansun/gmsm/sm3"
	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/internal/spool"
	"github.com/yumen-zt/yumen/wire"
)

// The bounds of one message from the outbox.
const (
	stretchRecords = 128
	stretchBytes   = 256 << 10
)

// place is how far a class is acknowledged: everything up to upTo, for which
// head stands.
type place struct {
	upTo uint64
	head wire.OutboxHead
}

// stretch is what goes out in one message: items in order, and the chain value
// after each.
type stretch struct {
	items []wire.OutboxItem
	after []place
}

func (s *stretch) end() place { return s.after[len(s.after)-1] }

func (s *stretch) add(it wire.OutboxItem, head wire.OutboxHead) {
	s.items, s.after = append(s.items, it), append(s.after, place{it.Last(), head})
}

// single returns the only record of s, if that is all.
func (s *stretch) single() (*wire.OutboxItem, bool) {
	return &s.items[0], len(s.items) == 1 && s.items[0].Type != ""
}

// stretch reads what follows from in class c: records, those of kept by their
// digest only, and what became of the numbers between. Nothing follows when it
// has no items. alone names the type that goes by itself, for its answer
// matters.
func (d *Durable) stretch(s *spool.Spool, c Class, from place, kept map[uint64]bool, alone string) (*stretch, error) {
	out := &stretch{}
	records, err := s.Next(classOf(c), from.upTo, stretchRecords)
	if err != nil {
		return nil, err
	}
	head, last, size := from.head, from.upTo, 0
	explain := func(to uint64) (bool, error) {
		between, err := s.Between(classOf(c), last+1, to)
		if err != nil {
			return false, err
		}
		for i, b := range between {
			if i == stretchRecords { // the rest in the next one
				return false, nil
			}
			it := wire.OutboxItem{Seq: b.From, To: b.To, Reason: wire.GapSettled}
			if b.Gap != nil {
				it.Count, it.Reason, it.At = b.Gap.Count, b.Gap.Reason.String(), wire.FormatTime(b.Gap.At)
			}
			head, last = head.Gap(it.Seq, it.To, it.Count, it.Reason), it.To
			out.add(it, head)
		}
		return true, nil
	}
	for _, r := range records {
		if r.Seq > last+1 {
			if all, err := explain(r.Seq - 1); err != nil || !all {
				return out, err
			}
		}
		it, digest := d.item(&r)
		if it.Type != "" && it.Type == alone {
			if len(out.items) > 0 {
				return out, nil
			}
			out.add(it, head.Record(it.Seq, digest))
			return out, nil
		}
		if size += len(it.Body); len(out.items) > 0 && size > stretchBytes {
			return out, nil
		}
		if it.To != 0 {
			head = head.Gap(it.Seq, it.To, it.Count, it.Reason)
		} else {
			head = head.Record(it.Seq, digest)
			if kept[it.Seq] {
				it = wire.OutboxItem{Seq: it.Seq, SM3: wire.OutboxHead(digest).String()}
			}
		}
		last = r.Seq
		out.add(it, head)
		if size > stretchBytes { // it goes by itself, so that its refusal is of it alone
			return out, nil
		}
	}
	if len(records) == 0 {
		if synced := s.Last(classOf(c)); synced > last {
			_, err = explain(synced)
		}
	}
	return out, err
}

// item makes the item of a record. A record that nobody can read is a gap.
func (d *Durable) item(r *spool.Record) (it wire.OutboxItem, digest [sm3.Size]byte) {
	if r.Gaps != nil {
		return wire.OutboxItem{Seq: r.Seq, To: r.Seq, Reason: wire.GapNote}, digest
	}
	var p Report
	err := json.Unmarshal(r.Payload, &p)
	if err == nil {
		digest, err = wire.OutboxDigest(p.Type, p.MsgID, p.Ext, p.Body)
	}
	if err != nil {
		return wire.OutboxItem{Seq: r.Seq, To: r.Seq, Count: 1, Reason: spool.Damaged.String()}, digest
	}
	return wire.OutboxItem{Seq: r.Seq, Type: p.Type, MsgID: p.MsgID, Ext: p.Ext, Body: p.Body}, digest
}
