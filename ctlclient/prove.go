package ctlclient

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/emmansun/gmsm/smx509"

	"github.com/yumen-zt/yumen/crypto/certid"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/spool"
)

// OutboxStatus is an outbox for `yumen outbox status`.
type OutboxStatus struct {
	ID      string        `json:"outbox,omitempty"`
	Dir     string        `json:"dir,omitempty"`
	Memory  bool          `json:"memory"`  // nothing is on disk: it could not be opened, or not yet
	Full    bool          `json:"full"`    // no space: only alerts and identity are taken
	Reserve bool          `json:"reserve"` // the reserve is in place
	Failed  int           `json:"failed"`  // writes and syncs that failed since the start
	Damaged int           `json:"damaged"` // bad stretches and files found since the start
	Classes []OutboxClass `json:"classes"`
}

// OutboxClass is one class of it.
type OutboxClass struct {
	Class      string            `json:"class"`
	Pending    int               `json:"pending"`
	Bytes      int64             `json:"bytes"`
	Segments   int               `json:"segments"`
	Oldest     time.Time         `json:"oldest,omitzero"`
	Last       uint64            `json:"last"`                  // highest number given
	Dropped    uint64            `json:"dropped"`               // since the start
	DroppedFor map[string]uint64 `json:"dropped_for,omitempty"` // Dropped by reason; "queue" never reached the outbox
	AckedTo    uint64            `json:"acked_to"`              // by the control center's signed word
	AckedAt    time.Time         `json:"acked_at,omitzero"`     // when that came
}

func (v *OutboxClass) droppedFor(why string, n uint64) {
	if v.DroppedFor == nil {
		v.DroppedFor = map[string]uint64{}
	}
	v.DroppedFor[why] += n
}

// classesOf returns the figures of an outbox that is not on disk.
func classesOf(o Outbox) (out []OutboxClass) {
	for c, st := range o.Stats() {
		v := OutboxClass{Class: Class(c).String(), Pending: st.Pending, Bytes: st.Bytes, Oldest: st.Oldest, Last: st.LastSeq, Dropped: st.Dropped}
		if st.Dropped > 0 {
			v.droppedFor(spool.OverCap.String(), st.Dropped)
		}
		out = append(out, v)
	}
	return out
}

// status returns the outbox's figures with what never reached it.
func (r *reporter) status() (out OutboxStatus) {
	if d, ok := r.out.(*Durable); ok {
		out = d.Status()
	} else {
		out = OutboxStatus{Memory: true, Classes: classesOf(r.out)}
	}
	for c := range out.Classes {
		n := r.dropped[c].Load()
		if Class(c) == ClassAlert {
			n += r.refused.Load()
		}
		if n > 0 {
			out.Classes[c].Dropped += n
			out.Classes[c].droppedFor("queue", n)
		}
	}
	return out
}

// OutboxProof is what the disk and the control center's signed word say of the
// numbers From to To of a class.
type OutboxProof struct {
	Outbox       string        `json:"outbox"`
	Class        string        `json:"class"`
	From         uint64        `json:"from"`
	To           uint64        `json:"to"`
	Contiguous   bool          `json:"contiguous"`   // every record is here, or acknowledged; nothing was altered
	Acknowledged uint64        `json:"acknowledged"` // numbers that the signed word covers
	NotChained   uint64        `json:"not_chained"`  // acknowledged, not chained: record by record, by msgId
	Waiting      uint64        `json:"waiting"`      // here, opened under their key, not acknowledged
	Gaps         []ProofGap    `json:"gaps"`         // what is lost, each with its reason
	Unexplained  []ProofRange  `json:"unexplained"`  // neither here nor acknowledged nor in a gap
	Faults       []spool.Fault `json:"faults"`       // broken chains on disk, altered files
	Evidence     *Evidence     `json:"evidence,omitempty"`
	Verified     bool          `json:"verified"` // the evidence's signature is the control center's
	Why          string        `json:"why,omitempty"`
}

// ProofGap is a stretch that is lost.
type ProofGap struct {
	From   uint64    `json:"from"`
	To     uint64    `json:"to"`
	Count  uint64    `json:"count"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// ProofRange is the numbers From to To.
type ProofRange struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// Status returns the outbox's figures.
func (d *Durable) Status() OutboxStatus {
	m, s := d.now()
	out := OutboxStatus{Dir: d.cfg.Dir, Memory: m != nil, Classes: []OutboxClass{}}
	if m != nil {
		out.Classes = classesOf(m)
		return out
	}
	all := s.Stats()
	out.ID, out.Full, out.Reserve, out.Failed, out.Damaged = d.acks.name(), all.Tight, all.Reserve, all.Failed, all.Damaged
	for c := range NumClasses {
		st := all.Class[classOf(c)]
		v := OutboxClass{Class: c.String(), Pending: st.Pending, Bytes: st.Bytes, Segments: st.Segments, Oldest: st.Oldest, Last: st.LastSeq, Dropped: st.Dropped}
		for why, n := range st.DroppedFor {
			if n > 0 {
				v.droppedFor(spool.Reason(why).String(), n)
			}
		}
		if e := d.acks.of(c); e != nil && e.Outbox == out.ID {
			v.AckedTo, v.AckedAt = e.UpTo, e.At
		}
		out.Classes = append(out.Classes, v)
	}
	return out
}

// Prove reads class c again from disk and compares it with what the control
// center has signed. to 0 is the last number. keys are those of the outbox's
// owner; they have the control center's certificate.
func (d *Durable) Prove(keys *keystore.Store, c Class, from, to uint64) (*OutboxProof, error) {
	_, s := d.now()
	if s == nil {
		return nil, errors.New("prove outbox: nothing is on disk")
	}
	from = max(from, 1)
	if to == 0 {
		to = s.Last(classOf(c))
	}
	p, err := s.Prove(classOf(c), from, to)
	if err != nil {
		return nil, err
	}
	out := &OutboxProof{Outbox: d.acks.name(), Class: c.String(), From: from, To: p.To, Waiting: p.Present,
		Gaps: []ProofGap{}, Unexplained: []ProofRange{}, Faults: append([]spool.Fault{}, p.Faults...)}
	for _, g := range p.Gaps {
		if g.Count > 0 {
			out.Gaps = append(out.Gaps, ProofGap{g.From, g.To, g.Count, g.Reason.String(), g.At})
		}
	}
	for _, r := range p.Unexplained {
		out.Unexplained = append(out.Unexplained, ProofRange{r.From, r.To})
	}
	var covered uint64
	if e := d.acks.of(c); e != nil && e.Outbox == out.Outbox {
		out.Evidence = e
		if err := e.verify(keys); err != nil {
			out.Why = err.Error()
		} else {
			out.Verified, covered = true, e.UpTo
		}
	}
	settled, waiting, err := s.Split(classOf(c), from, out.To, covered)
	if err != nil {
		return nil, err
	}
	out.NotChained, out.Waiting = settled, waiting
	if covered >= from {
		out.Acknowledged = min(covered, out.To) - from + 1
	}
	out.Contiguous = len(out.Gaps) == 0 && len(out.Unexplained) == 0 && len(out.Faults) == 0 && (out.Evidence == nil || out.Verified)
	return out, nil
}

// verify checks that the control center that keys know signed e.
func (e *Evidence) verify(keys *keystore.Store) error {
	chain, err := keys.Chain(keystore.TLS)
	if err != nil {
		return err
	}
	own, err := certid.OfSM(chain[0])
	if err != nil {
		return err
	}
	control, err := keys.Chain(keystore.ControlSign)
	if err != nil {
		return err
	}
	opener, err := keys.Decrypter(keystore.Enc)
	if err != nil {
		return err
	}
	id := own.Gateway
	if id == "" {
		id = own.Agent
	}
	in, err := envelope.NewReceiver(envelope.Config{ID: id, Decrypter: opener, MaxBytes: maxReplyBytes, Now: func() time.Time { return e.At },
		Skew: 24 * time.Hour, Signers: func(keyID, sender string) (*smx509.Certificate, error) {
			if keyID != envelope.KeyID(control[0]) || sender != e.Control {
				return nil, errors.New("not the control center's key")
			}
			return control[0], nil
		}})
	if err != nil {
		return err
	}
	m, err := in.Open(e.Envelope)
	if err != nil {
		return fmt.Errorf("verify acknowledgement: %w", withCause(err))
	}
	acks, err := acksOf(m, e.Outbox)
	if err != nil {
		return err
	}
	named := false
	for _, a := range acks.Acks {
		named = named || a.Class == e.Class
		if a.Class == e.Class && a.UpTo == e.UpTo && a.Head == e.Head {
			return nil
		}
	}
	if e.UpTo == 0 && !named { // a class that is not named stands at 0
		return nil
	}
	return errors.New("verify acknowledgement: the signed answer says something else")
}

// ParseClass returns the class of a name.
func ParseClass(name string) (Class, error) {
	for c := range NumClasses {
		if c.String() == name {
			return c, nil
		}
	}
	return 0, fmt.Errorf("class %q: it is one of alert, identity, audit, status", name)
}

// proveAll proves one class, or all when name is empty.
func (d *Durable) proveAll(keys *keystore.Store, name string, from, to uint64) (out []*OutboxProof, err error) {
	for c := range NumClasses {
		if name != "" && name != c.String() {
			continue
		}
		p, err := d.Prove(keys, c, from, to)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	if out == nil {
		_, err = ParseClass(name)
	}
	return out, err
}

// ProveFolder proves the outbox in dir of the owner of keys while no process
// runs on it.
func ProveFolder(keys *keystore.Store, dir, class string, from, to uint64) ([]*OutboxProof, error) {
	d := NewDurable(DurableConfig{Dir: dir, Key: OutboxKey(keys), Reserve: -1})
	if err := d.Open(); err != nil {
		return nil, err
	}
	out, err := d.proveAll(keys, class, from, to)
	return out, errors.Join(err, d.Close())
}

// handler answers the verbs: GET /outbox and GET /outbox/prove.
func (r *reporter) handler(keys *keystore.Store) http.Handler {
	m := http.NewServeMux()
	d, ok := r.out.(*Durable)
	m.HandleFunc("GET /outbox", func(w http.ResponseWriter, _ *http.Request) {
		if !ok {
			adminsock.Refuse(w, http.StatusNotFound, errors.New("the outbox is in memory"))
			return
		}
		adminsock.Reply(w, r.status())
	})
	m.HandleFunc("GET /outbox/prove", func(w http.ResponseWriter, q *http.Request) {
		if !ok {
			adminsock.Refuse(w, http.StatusNotFound, errors.New("the outbox is in memory: nothing can be proved"))
			return
		}
		from, err1 := number(q.FormValue("from"))
		to, err2 := number(q.FormValue("to"))
		out, err := []*OutboxProof(nil), errors.Join(err1, err2)
		if err == nil {
			out, err = d.proveAll(keys, q.FormValue("class"), from, to)
		}
		if err != nil {
			adminsock.Refuse(w, http.StatusBadRequest, err)
			return
		}
		adminsock.Reply(w, out)
	})
	return m
}

func number(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// OutboxStatus returns the figures of the outbox.
func (g *Gateway) OutboxStatus() OutboxStatus { return g.reports.status() }

// OutboxHandler answers the verbs of `yumen outbox` below /outbox.
func (g *Gateway) OutboxHandler() http.Handler { return g.reports.handler(g.cfg.Keys) }

// OutboxHandler answers the verbs of `yumen outbox` below /outbox.
func (a *Agent) OutboxHandler() http.Handler { return a.reports.handler(a.cfg.Keys) }

// auditQueue is how many audit records may wait for the outbox.
const auditQueue = 4096

// Audit sends an audit record, a JSON object, to the control center (X.audit).
// It copies line and never blocks; what does not fit is counted as dropped.
func (g *Gateway) Audit(line []byte) {
	select {
	case g.reports.audits <- append([]byte(nil), line...):
	default:
		g.reports.dropped[ClassAudit].Add(1)
	}
}
