package wire

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/emmansun/gmsm/sm3"
	"github.com/go-json-experiment/json/jsontext"
)

// TypeOutbox is a stretch of a sender's outbox: records and gaps, in order.
// TypeAudit is one audit record in it; it is never sent alone.
const (
	TypeOutbox = "X.outbox"
	TypeAudit  = "X.audit"
)

// MaxOutboxItems bounds one X.outbox.
const MaxOutboxItems = 512

// OutboxNumber names one class of one outbox; see docs/binding-v1.md §7.1.
// It is header.ext.outbox of each message from an outbox.
type OutboxNumber struct {
	ID    string `json:"id"`              // of the outbox, 32 hexadecimal digits; a new one when the sender's memory is not the one that was
	Class string `json:"class,omitempty"` // alert, identity, audit or status
	From  uint64 `json:"from,string,omitzero"`
	To    uint64 `json:"to,string,omitzero"`
	Prev  string `json:"prev,omitempty"` // chain value before From; absent: sent ahead of older ones
	Head  string `json:"head,omitempty"` // chain value after To
}

// Check reports what is wrong with n's form.
func (n *OutboxNumber) Check() error {
	switch {
	case len(n.ID) != 32 || !lowerHex(n.ID):
		return errors.New("check outbox: the id is not 32 hexadecimal digits")
	case n.Class == "" && n.From == 0 && n.To == 0 && n.Prev == "" && n.Head == "":
		return nil // a question
	case n.Class != "alert" && n.Class != "identity" && n.Class != "audit" && n.Class != "status":
		return fmt.Errorf("check outbox: class %q", n.Class)
	case n.From == 0 || n.From > n.To || n.To >= 1<<62:
		return fmt.Errorf("check outbox: numbers %d to %d", n.From, n.To)
	case (n.Prev == "") != (n.Head == ""):
		return errors.New("check outbox: prev and head go together")
	case n.Prev != "" && (!isChain(n.Prev) || !isChain(n.Head)):
		return errors.New("check outbox: prev or head is not 64 hexadecimal digits")
	}
	return nil
}

// Outbox is the body of X.outbox.
type Outbox struct {
	Items []OutboxItem `json:"items"`
}

// OutboxItem is one record (Type is set), one that was sent ahead (SM3 is set),
// or a gap (To is set).
type OutboxItem struct {
	Seq uint64 `json:"seq,string"`

	Type  string                    `json:"type,omitempty"` // T4, T10, T11, T21, T22, X.audit
	MsgID string                    `json:"msgId,omitempty"`
	Ext   map[string]jsontext.Value `json:"ext,omitempty"`
	Body  jsontext.Value            `json:"body,omitempty"`

	SM3 string `json:"sm3,omitempty"` // Digest of a record that the receiver has

	To     uint64 `json:"to,string,omitzero"` // the gap is Seq to To
	Count  uint64 `json:"count,omitzero"`     // records lost in it
	Reason string `json:"reason,omitempty"`   // over_cap, gave_way, refused, damaged, missing, several; settled, note: nothing is lost
	At     string `json:"at,omitempty"`       // when it was found
}

// The reasons of gaps in which nothing is lost.
const (
	GapSettled = "settled" // acknowledged before, by another control center or without a chain
	GapNote    = "note"    // the sender's own remark in its outbox
)

// Last returns the last number that the item is about.
func (i *OutboxItem) Last() uint64 { return max(i.Seq, i.To) }

// Check reports what is wrong with i's form.
func (i *OutboxItem) Check() error {
	kinds := 0
	for _, set := range []bool{i.Type != "", i.SM3 != "", i.To != 0} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds != 1 || i.Seq == 0:
		return fmt.Errorf("check outbox: item %d is not one of a record, a digest and a gap", i.Seq)
	case i.To != 0 && (i.To < i.Seq || i.Count > i.To-i.Seq+1 || len(i.Reason) > 32 || i.Reason == ""):
		return fmt.Errorf("check outbox: gap %d to %d with %d records", i.Seq, i.To, i.Count)
	case i.SM3 != "" && !isChain(i.SM3):
		return fmt.Errorf("check outbox: item %d: the digest is not 64 hexadecimal digits", i.Seq)
	case i.Type != "" && (i.MsgID == "" || len(i.MsgID) > 64 || i.Body.Kind() != '{'):
		return fmt.Errorf("check outbox: item %d has no msgId or no body", i.Seq)
	}
	return nil
}

// OutboxAcks is header.ext.outbox of the reply to a message from an outbox: how
// far the receiver has everything, and nothing twice. The reply's signature
// makes it evidence.
type OutboxAcks struct {
	ID   string      `json:"id"`
	Acks []OutboxAck `json:"acks"` // a class that is not named stands at 0
}

// OutboxAck is the position of one class.
type OutboxAck struct {
	Class   string          `json:"class"`
	UpTo    uint64          `json:"upTo,string"`
	Head    string          `json:"head"`
	Ahead   []string        `json:"ahead,omitempty"`   // of the message answered: numbers beyond UpTo that are kept, too
	Refused []OutboxRefusal `json:"refused,omitempty"` // of the message answered: records that were not taken and never will be
}

// OutboxRefusal says why a record was refused for good. It counts as
// acknowledged all the same.
type OutboxRefusal struct {
	Seq    uint64 `json:"seq,string"`
	Result string `json:"result"`
}

// OutboxHead is a chain value. The chain says in 32 bytes what a class of an
// outbox holds up to a number.
type OutboxHead [sm3.Size]byte

// OutboxStart returns the chain value before number 1.
func OutboxStart(id, sender, class string) OutboxHead {
	return sm3.Sum([]byte("yumen-outbox-v1\n" + id + "\n" + sender + "\n" + class + "\n"))
}

// ParseOutboxHead reads what String returns.
func ParseOutboxHead(s string) (h OutboxHead, err error) {
	if !isChain(s) {
		return h, errors.New("read chain value: not 64 hexadecimal digits")
	}
	_, err = hex.Decode(h[:], []byte(s))
	return h, err
}

func (h OutboxHead) String() string { return hex.EncodeToString(h[:]) }

// Record returns the chain value after a record with this digest.
func (h OutboxHead) Record(seq uint64, digest [sm3.Size]byte) OutboxHead {
	return h.link(0, seq, seq, digest)
}

// Gap returns the chain value after a gap.
func (h OutboxHead) Gap(from, to, count uint64, reason string) OutboxHead {
	return h.link(1, from, to, sm3.Sum(append(binary.BigEndian.AppendUint64(nil, count), reason...)))
}

func (h OutboxHead) link(kind byte, from, to uint64, digest [sm3.Size]byte) OutboxHead {
	b := make([]byte, 0, 2*sm3.Size+17)
	b = append(b, h[:]...)
	b = append(b, kind)
	b = binary.BigEndian.AppendUint64(b, from)
	b = binary.BigEndian.AppendUint64(b, to)
	return sm3.Sum(append(b, digest[:]...))
}

// OutboxDigest is the digest of a record: SM3 over msgType, msgId, JCS(ext)
// without the field outbox, and JCS(body), each followed by a line feed.
func OutboxDigest(msgType, msgID string, ext map[string]jsontext.Value, body []byte) (d [sm3.Size]byte, err error) {
	h := sm3.New()
	h.Write([]byte(msgType + "\n" + msgID + "\n"))
	fields := []byte("{}")
	if own := withoutOutbox(ext); len(own) > 0 {
		if fields, err = EncodeExtension(own); err != nil {
			return d, err
		}
	}
	for _, part := range []jsontext.Value{fields, append(jsontext.Value(nil), body...)} {
		if err := part.Canonicalize(); err != nil {
			return d, fmt.Errorf("digest record: %w", err)
		}
		h.Write(append(part, '\n'))
	}
	h.Sum(d[:0])
	return d, nil
}

func withoutOutbox(ext map[string]jsontext.Value) map[string]jsontext.Value {
	if _, ok := ext[ExtOutbox]; !ok {
		return ext
	}
	own := make(map[string]jsontext.Value, len(ext))
	for k, v := range ext {
		if k != ExtOutbox {
			own[k] = v
		}
	}
	return own
}

func isChain(s string) bool { return len(s) == 2*sm3.Size && lowerHex(s) }

func lowerHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
