package control

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

const (
	writeTimeout = 10 * time.Second // one event; a peer that takes longer is gone
	maxDeltaRows = 1000             // grants in one delta; beyond it the gateway pulls
)

// events is the push stream of a gateway (SSE). What is committed is written at
// once; a stream that falls behind is told to pull, and nothing waits for it.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	p, why := s.peerOf(r, model.Gateway)
	if why != reason.OK {
		s.refuseUnknown(w, r, "events", why)
		return
	}
	if !s.identified(p.Party) {
		s.refuseGet(w, p, "events", reason.NotAuthenticated)
		return
	}
	to, err := encOf(p.Party)
	if err != nil {
		s.refuseGet(w, p, "events", reason.InternalError)
		return
	}
	newest := s.hub.attach(p.ID)
	defer s.hub.detach(p.ID)
	s.audit.Write(s.record(p, "events", answer{}))
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set(wire.HeartbeatHeader, strconv.FormatInt(s.cfg.Heartbeat.Milliseconds(), 10))
	w.WriteHeader(http.StatusOK)

	st := &stream{s: s, p: p, to: to, newest: newest, w: w, rc: http.NewResponseController(w)}
	err = st.open(r.Header.Get("Last-Event-ID"))
	beat := time.NewTicker(s.cfg.Heartbeat)
	defer beat.Stop()
	for err == nil {
		c, wake, lost := s.hub.after(st.at)
		switch {
		case lost != nil:
			err = st.resync()
		case c != nil:
			if err = st.change(c); err == nil {
				st.at = c.Rev
			}
		default:
			if err = st.flush(); err != nil {
				break
			}
			select {
			case <-wake:
			case <-beat.C:
				if why := st.still(); why != "" {
					s.log.Info("push stream ended", zap.String("gateway_id", p.ID), zap.String("cause", why))
					return
				}
				fmt.Fprintf(&st.buf, ": beat\nseq: %d\n\n", st.seq)
			case <-r.Context().Done():
				return
			}
		}
	}
	s.log.Info("push stream broke", zap.String("gateway_id", p.ID), zap.Error(err))
}

// stream is one open push stream; it belongs to its handler's goroutine.
type stream struct {
	s   *Server
	p   *peer
	to  *smx509.Certificate
	w   http.ResponseWriter
	rc  *http.ResponseController
	buf bytes.Buffer
	at  uint64    // revision up to which the gateway was told
	seq uint64    // events of this stream so far
	due time.Time // commit time of the oldest change in buf

	newest func() bool // no other stream of this gateway is newer
}

// still says why the stream must end, "" when it need not.
func (st *stream) still() string {
	now := st.s.party(st.p.ID)
	switch {
	case !st.newest():
		return "the gateway has a newer one"
	case now == nil || string(now.TLS) != string(st.p.TLS):
		return "the gateway was removed or enrolled again"
	case !st.s.identified(now):
		return "no T4 within 120 s, or locked"
	}
	return ""
}

// open sends what a stream begins with: what was missed since lastEventID, or
// the versions to compare with.
func (st *stream) open(lastEventID string) error {
	var rev uint64
	st.s.view(func(m *model.State) { rev = m.Rev })
	if last, err := strconv.ParseUint(lastEventID, 10, 64); err == nil && last <= rev {
		if _, _, lost := st.s.hub.after(last); lost == nil {
			st.at = last
			st.buf.WriteString(": resumed\n\n")
			return nil // the loop sends the rest
		}
	}
	if lastEventID != "" {
		return st.resync()
	}
	return st.versions("changed")
}

// resync tells the gateway to pull both lists: events between were lost.
func (st *stream) resync() error {
	st.s.stats.resyncs.Add(1)
	return st.versions("resync")
}

// versions names both lists' versions, and hands over what no list carries:
// the revocations that still count.
func (st *stream) versions(event string) error {
	var grants, policies, rev uint64
	var revoke []wire.Revocation
	st.s.view(func(m *model.State) {
		rev, grants, policies = m.Rev, m.GrantsVersion, m.PoliciesVersion
		for _, r := range m.Revocations {
			revoke = append(revoke, wireRevocation(r))
		}
	})
	for part := range slices.Chunk(revoke, 5*maxDeltaRows) {
		d := wire.Delta{From: grants, To: grants, Timestamp: wire.FormatTime(st.s.cfg.Now()), Revoke: part}
		if err := st.delta(&d); err != nil {
			return err
		}
		st.end(0)
	}
	if event == "resync" {
		fmt.Fprintf(&st.buf, "event: resync\ndata: {\"version\":\"%d\"}\n", rev)
	} else {
		st.changed(wire.GrantsList, grants)
		st.end(0)
		st.changed(wire.PoliciesList, policies)
	}
	st.end(rev)
	st.at = rev
	return nil
}

// change writes one change. Only its last event carries the id, so a stream
// that breaks in between begins with the whole change again.
func (st *stream) change(c *model.Change) error {
	if st.due.IsZero() {
		st.due = c.At
	}
	parts := 0
	next := func() {
		if parts++; parts > 1 {
			st.end(0)
		}
	}
	pull := c.Grants && !c.Delta()
	if c.Delta() {
		for _, d := range deltas(c) {
			next()
			if err := st.delta(d); err != nil {
				return err
			}
		}
		pull = len(c.Rows) > maxDeltaRows
	}
	if pull {
		next()
		st.changed(wire.GrantsList, c.To)
	}
	if c.Policies {
		next()
		st.changed(wire.PoliciesList, c.Rev)
	}
	st.end(c.Rev)
	return st.flush()
}

// deltas returns c as messages. What narrows always goes with them; too many
// new rows are left to the pull that follows.
func deltas(c *model.Change) []*wire.Delta {
	first := &wire.Delta{From: c.From, To: c.To, Timestamp: wire.FormatTime(c.At)}
	for _, l := range c.Locks {
		first.Locks = append(first.Locks, l.Wire())
	}
	for _, l := range c.Unlocks {
		first.Unlocks = append(first.Unlocks, wire.LockRef{Kind: l.Kind, ID: l.ID})
	}
	for i := range c.Revoke {
		first.Revoke = append(first.Revoke, wireRevocation(&c.Revoke[i]))
	}
	out := []*wire.Delta{first}
	for i, chunk := range slices.Collect(slices.Chunk(c.Remove, 5*maxDeltaRows)) {
		d := first
		if i > 0 {
			d = &wire.Delta{From: c.From, To: c.To, Timestamp: first.Timestamp}
			out = append(out, d)
		}
		for _, p := range chunk {
			d.Remove = append(d.Remove, wire.PairRef{UserID: p.User, DeviceID: p.Device})
		}
	}
	if len(c.Rows) <= maxDeltaRows {
		for i, r := range c.Rows {
			first.Grants = append(first.Grants, r.Grant())
			first.Ext = append(first.Ext, r.Facts(i))
		}
	} else {
		first.To = first.From // it gives nothing; the pull brings the version
	}
	return out
}

func wireRevocation(r *model.Revocation) wire.Revocation {
	if r.SessionID != "" {
		return wire.Revocation{SessionID: r.SessionID}
	}
	return wire.Revocation{UserID: r.UserID, IssuedBefore: wire.FormatTime(r.IssuedBefore)}
}

// delta writes d as an event without its end.
func (st *stream) delta(d *wire.Delta) error {
	body, err := wire.EncodeExtension(d)
	if err != nil {
		return err
	}
	env, err := st.s.signList(wire.TypeDelta, st.p.ID, body, nil, st.to)
	if err != nil {
		return err
	}
	st.s.stats.deltas.Add(1)
	st.buf.WriteString("event: delta\ndata: ")
	st.buf.Write(env)
	st.buf.WriteByte('\n')
	return nil
}

// end ends an event. Its number on this stream shows the gateway whether one
// before it was lost; rev is its id, 0 for none.
func (st *stream) end(rev uint64) {
	st.seq++
	fmt.Fprintf(&st.buf, "seq: %d\n", st.seq)
	if rev != 0 {
		fmt.Fprintf(&st.buf, "id: %d\n", rev)
	}
	st.buf.WriteString("\n")
}

func (st *stream) changed(list wire.ListName, version uint64) {
	fmt.Fprintf(&st.buf, "event: changed\ndata: {\"list\":\"%s\",\"version\":\"%d\"}\n", list, version)
}

// flush hands what is in the buffer to the kernel.
func (st *stream) flush() error {
	if st.buf.Len() == 0 {
		return nil
	}
	if err := st.rc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if _, err := st.w.Write(st.buf.Bytes()); err != nil {
		return err
	}
	st.buf.Reset()
	if err := st.rc.Flush(); err != nil {
		return err
	}
	if !st.due.IsZero() {
		took := st.s.cfg.Now().Sub(st.due)
		st.s.hub.with(st.p.ID, func(l *link) { l.lastDelivery = took })
		st.due = time.Time{}
	}
	return nil
}
