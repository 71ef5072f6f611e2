package ctlclient

import (
	"fmt"
	"slices"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// deltaBody is [wire.Delta] with the rows left as they came, so that a bad one
// does not fail the others.
type deltaBody struct {
	From      uint64            `json:"from,string"`
	To        uint64            `json:"to,string"`
	Timestamp string            `json:"timestamp"`
	Remove    []wire.PairRef    `json:"remove"`
	Grants    jsontext.Value    `json:"grants"`
	Ext       []wire.RowFacts   `json:"ext"`
	Locks     []wire.LockRow    `json:"locks"`
	Unlocks   []wire.LockRef    `json:"unlocks"`
	Revoke    []wire.Revocation `json:"revoke"`
}

// Delta reads one delta. Whether it follows the version that the gateway holds
// is for the caller: [Delta.narrow].
func (v *Verifier) Delta(line []byte) (*Delta, error) { return v.delta(line, v.cfg.Now) }

func (v *Verifier) delta(line []byte, signedAt func() time.Time) (*Delta, error) {
	var signer error
	resolve := envelope.ListSigner(v.cfg.Roots, signedAt)
	r, err := envelope.NewReceiver(envelope.Config{
		ID: v.cfg.GatewayID, Decrypter: v.cfg.Decrypter, RequireSealed: true, Skew: -1, MaxBytes: wire.MaxMessage, Now: signedAt,
		Resolve: func(h *envelope.Header) (c *smx509.Certificate, err error) {
			c, signer = resolve(h)
			return c, signer
		},
	})
	if err != nil {
		return nil, listFault(wire.GrantsList, "delta", err)
	}
	m, err := r.Open(line, wire.TypeDelta)
	if signer != nil {
		err = &ListError{Reason: reason.ListSigner, Err: signer}
	}
	if err != nil {
		return nil, listFault(wire.GrantsList, "delta", err)
	}
	if v.cfg.ControlID != "" && m.Header.Sender != v.cfg.ControlID {
		return nil, listFault(wire.GrantsList, "delta", &ListError{Reason: reason.ListSigner, Err: fmt.Errorf("sender %q is not control center %s", m.Header.Sender, v.cfg.ControlID)})
	}
	d, err := v.readDelta(m.Body)
	if err != nil {
		return nil, listFault(wire.GrantsList, "delta", invalid(err))
	}
	return d, nil
}

func (v *Verifier) readDelta(body []byte) (*Delta, error) {
	var b deltaBody
	if err := json.Unmarshal(body, &b); err != nil {
		return nil, err
	}
	if b.To == 0 || b.To < b.From {
		return nil, fmt.Errorf("from %d to %d", b.From, b.To)
	}
	at, err := wire.ParseTime(b.Timestamp)
	if err != nil {
		return nil, fmt.Errorf("timestamp: %w", err)
	}
	d := &Delta{From: b.From, To: b.To, Time: at, Remove: b.Remove, Locks: b.Locks, Unlocks: b.Unlocks, Revoke: b.Revoke}
	if b.Grants == nil {
		return d, nil
	}
	rows, bad, err := wire.DecodeRows[wire.Grant](b.Grants, v.cfg.Profile)
	if err != nil {
		return nil, err
	}
	facts, faults, err := indexFacts(b.Ext, len(rows)+len(bad))
	if err != nil {
		return nil, err
	}
	for i, g := range rows {
		row := wire.OriginalRow(bad, i)
		if f := faults[row]; f != nil {
			d.Faults = append(d.Faults, RowFault{Row: row, ID: g.UserID + "/" + g.DeviceID, Err: f})
			d.Remove = append(d.Remove, wire.PairRef{UserID: g.UserID, DeviceID: g.DeviceID})
			continue
		}
		full := GrantRow{Grant: g}
		facts[row].into(&full)
		full.Sum = wire.RowSum(facts[row].digest(&g))
		d.Rows = append(d.Rows, full)
	}
	if len(bad) > 0 {
		if err := d.closeBadRows(b.Grants, bad); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// closeBadRows puts the pair of each bad row into Remove: what should replace a
// row and cannot be read leaves nothing in its place.
func (d *Delta) closeBadRows(raw jsontext.Value, bad []wire.RowError) error {
	var rows []jsontext.Value
	if err := json.Unmarshal(raw, &rows); err != nil {
		return err
	}
	for _, e := range bad {
		var who struct{ UserID, DeviceID any }
		var pair wire.PairRef
		if e.Row < len(rows) && json.Unmarshal(rows[e.Row], &who, json.MatchCaseInsensitiveNames(true), jsontext.AllowDuplicateNames(true)) == nil {
			pair.UserID, _ = who.UserID.(string)
			pair.DeviceID, _ = who.DeviceID.(string)
		}
		d.Faults = append(d.Faults, RowFault{Row: e.Row, ID: pair.UserID + "/" + pair.DeviceID, Err: e.Err})
		if pair.UserID == "" || pair.DeviceID == "" {
			d.unclear = true
			continue
		}
		d.Remove = append(d.Remove, pair)
	}
	return nil
}

// narrow returns the part of d that takes away, which holds whatever version
// the gateway has.
func (d *Delta) narrow() *Delta {
	return &Delta{From: d.From, To: d.To, Time: d.Time, NarrowOnly: true, Remove: d.Remove, Locks: d.Locks, Revoke: d.Revoke, Faults: d.Faults}
}

// takesAway reports whether d narrows anything.
func (d *Delta) takesAway() bool { return len(d.Remove)+len(d.Locks)+len(d.Revoke) > 0 }

// fold applies d to the rows of a list, as a handler would.
func (d *Delta) fold(rows []GrantRow) []GrantRow {
	f := folding{version: d.From}
	f.put(d, d.Rows)
	return f.rows(rows)
}

// folding gathers deltas that are to be applied to a list, so that a list of any
// size is gone through once.
type folding struct {
	version uint64 // of the list with what was added so far
	changed map[wire.PairRef]*GrantRow
	faults  []RowFault
}

// add adds the delta that came behind those before it. One that does not follow
// the version only takes away.
func (f *folding) add(d *Delta) {
	switch {
	case d.To < f.version: // older: its grants are in the list, and more
	case f.follows(d):
		f.put(d, d.Rows)
		f.faults = append(f.faults, d.Faults...)
		f.version = d.To
	default:
		f.put(d, nil)
	}
}

// follows reports whether d changes the version.
func (f *folding) follows(d *Delta) bool { return d.From == f.version && !d.unclear }

func (f *folding) put(d *Delta, rows []GrantRow) {
	if f.changed == nil {
		f.changed = make(map[wire.PairRef]*GrantRow, len(d.Remove)+len(rows))
	}
	for _, p := range d.Remove {
		f.changed[p] = nil
	}
	for i := range rows {
		f.changed[wire.PairRef{UserID: rows[i].UserID, DeviceID: rows[i].DeviceID}] = &rows[i]
	}
}

// rows returns what becomes of the rows of the list.
func (f *folding) rows(rows []GrantRow) []GrantRow {
	if len(f.changed) == 0 {
		return rows
	}
	rows = slices.DeleteFunc(rows, func(r GrantRow) bool {
		_, ok := f.changed[wire.PairRef{UserID: r.UserID, DeviceID: r.DeviceID}]
		return ok
	})
	for _, r := range f.changed {
		if r != nil {
			rows = append(rows, *r)
		}
	}
	return rows
}
