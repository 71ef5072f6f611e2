package ctlclient

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// current is what is in force, as the goroutine that applies knows it.
type current struct {
	grants   uint64
	policies uint64
	held     *verified // grants that wait for the first policies
	recent   []*Delta  // changes of locks that the policies in force may not have yet
	carried  []carried // deltas whose locks and revocations outlive a full list

	log      []logged         // the newest deltas, for lists that are on their way
	logBytes int              // of their lines
	late     *verified        // grants that wait for a change; nil: none
	lateEnd  <-chan time.Time // when they have waited long enough
}

// carried is a delta line with more than grants in it.
type carried struct {
	at   time.Time
	line []byte
}

// The bounds of what a full list does not replace.
const (
	maxCarried = 4096
	carriedFor = 24 * time.Hour
)

// apply is the one goroutine that calls the handler: events and verified lists
// come here, acks go out.
func (g *Gateway) apply(ctx context.Context, events <-chan event, w wanted, acks chan<- wire.Ack) error {
	ack := func(a wire.Ack) {
		select {
		case acks <- a:
		case <-ctx.Done():
		}
	}
	tick := time.NewTimer(sooner(g.cfg.PullInterval))
	defer tick.Stop()
	defer g.cur.dropLate()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			tick.Reset(sooner(g.cfg.PullInterval))
			w.both()
		case <-g.sync:
			w.both()
		case v := <-g.verified:
			g.applyList(ctx, v, w, ack)
			close(v.done)
		case <-g.cur.lateEnd:
			g.cur.dropLate()
			w.want(wire.GrantsList)
		case e := <-events:
			refused := false
			switch e.kind {
			case eventDelta:
				refused = !g.applyDelta(ctx, e.data, w, ack)
			case eventChanged:
				ref, err := wire.DecodeExtension[wire.DeltaRef](e.data)
				if err != nil || ref.List != wire.PoliciesList && ref.List != wire.GrantsList {
					w.both()
				} else {
					w.want(ref.List)
				}
			default:
				w.both()
			}
			g.applied(e, refused) // only now: what was lost on the way comes again
			if v := g.cur.late; v != nil {
				g.cur.late = nil
				g.applyList(ctx, *v, w, ack)
				if v.down.drop(); g.cur.late == nil {
					g.cur.lateEnd = nil
				}
			}
		}
	}
}

// applyList puts a verified list in force, or reports that it was refused.
func (g *Gateway) applyList(ctx context.Context, v verified, w wanted, ack func(wire.Ack)) {
	if v.err != nil {
		g.refuse(v.err)
		ack(wire.Ack{List: v.name, Version: g.inForce(v.name), Result: v.err.Reason.Result()})
		return
	}
	version := v.list.manifest.Version
	if v.name == wire.GrantsList && g.cur.late != nil && version >= g.cur.late.list.manifest.Version {
		g.cur.dropLate()
	}
	if highest := g.state.of(v.name).Highest; version < highest { // changes came while the list was on its way
		if v.name != wire.GrantsList {
			w.want(v.name)
			return
		}
		var whole bool
		if v.after, whole = g.cur.join(version, highest); !whole {
			g.cur.await(v)
			return
		}
		version = v.version()
	}
	if v.name == wire.GrantsList && g.cur.policies == 0 {
		// Grants without the policies that restrict them would be too much.
		v.down = v.down.take()
		g.releaseHeld()
		g.cur.held = &v
		return
	}
	var err error
	if v.whole || !g.same(v) {
		err = g.give(ctx, v)
	}
	a := wire.Ack{List: v.name, Version: version, Applied: err == nil, Result: reason.OK.Result()}
	if err != nil {
		g.log.Error("list not applied", zap.String("list", string(v.name)), zap.Uint64("version", version), zap.Error(err))
		a.Result = reason.InternalError.Result()
	}
	ack(a)
	if h := g.cur.held; err == nil && v.name == wire.PoliciesList && h != nil {
		g.cur.held = nil
		g.applyList(ctx, *h, w, ack)
		h.down.drop()
	}
}

// same reports whether the grants are in force and stored already, to the row
// and to the second: two wishes at the start may fetch them twice. Policies are
// always given, for their locks may take others back.
func (g *Gateway) same(v verified) bool {
	in := g.state.of(wire.GrantsList)
	g.mu.Lock()
	end := g.status.GrantsNotAfter
	g.mu.Unlock()
	version := v.list.manifest.Version
	return v.name == wire.GrantsList && version == g.cur.grants && version == in.Stored && v.list.digest == in.Digest && v.list.notAfter.Equal(end)
}

func (g *Gateway) releaseHeld() {
	if g.cur.held != nil {
		g.cur.held.down.drop()
		g.cur.held = nil
	}
}

func (g *Gateway) inForce(name wire.ListName) uint64 {
	if name == wire.GrantsList {
		return g.cur.grants
	}
	return g.cur.policies
}

// give calls the handler with a whole list and sees that it is stored.
func (g *Gateway) give(ctx context.Context, v verified) error {
	l, version := v.list, v.list.manifest.Version
	var lines [][]byte
	if v.name == wire.GrantsList {
		lines = linesOf(g.carriedLines(), v.after)
	}
	store := sync.OnceValue(func() error { return g.state.store(v.name, version, l.digest, v.since, v.down, lines) })
	g.state.saw(v.name, version, l.digest)
	g.badRows(v.name, l.faults)
	var err error
	if v.name == wire.GrantsList {
		list := l.grants()
		if len(v.after) > 0 {
			after := make([]*Delta, len(v.after))
			for i, l := range v.after {
				after[i] = l.d
			}
			version = withDeltas(list, after).Version
		}
		list.Store = store
		err = g.cfg.Handler.Grants(ctx, list)
	} else {
		list := l.policies()
		g.cur.recent = arrivedAfter(g.cur.recent, v.arrived)
		list.Locks = mergeLocks(list.Locks, g.cur.recent)
		list.Store = store
		err = g.cfg.Handler.Policies(ctx, list)
	}
	if err != nil {
		return err
	}
	g.notStored(store())
	g.inForceNow(v.name, version, l.notAfter)
	if v.name == wire.GrantsList {
		g.setHalf(false)
	}
	return nil
}

// setHalf notes whether a change is in force under a version that it is not
// part of; its rest comes with the list.
func (g *Gateway) setHalf(half bool) {
	g.mu.Lock()
	g.half = half
	g.mu.Unlock()
}

// notStored reports that something will not survive a restart.
func (g *Gateway) notStored(err error) {
	if err != nil {
		g.log.Error("list not stored", zap.Error(err))
	}
	g.set(func(s *GatewayStatus) {
		s.StoreError = ""
		if err != nil {
			s.StoreError = err.Error()
		}
	})
}

func (g *Gateway) inForceNow(name wire.ListName, version uint64, notAfter time.Time) {
	now := g.cfg.Now()
	if name == wire.GrantsList {
		g.cur.grants = version
	} else {
		g.cur.policies = version
	}
	g.set(func(s *GatewayStatus) {
		if g.cur.grants != 0 && g.cur.policies != 0 {
			s.Unproved = ""
		}
		if name == wire.GrantsList {
			s.GrantsVersion, s.GrantsAt = version, now
			if !notAfter.IsZero() { // a delta leaves the list's life as it is
				s.GrantsNotAfter = notAfter
			}
			return
		}
		s.PolicyVersion, s.PolicyAt, s.PolicyNotAfter = version, now, notAfter
	})
}

// How a delta stands to the version in force.
type standing uint8

const (
	follows standing = iota // it changes the version in force: all of it counts
	part                    // a further part of the change in force
	late                    // older: only what no list of grants carries
	gap                     // changes are missing: what it takes away, and a pull
)

func (g *Gateway) standing(d *Delta) standing {
	cur := g.cur.grants
	switch {
	case cur == 0:
		return gap
	case d.From == cur && !d.unclear:
		return follows
	case d.To == cur && !d.unclear:
		return part
	case d.To < cur:
		return late
	}
	return gap
}

// applyDelta applies a change. What it takes away holds at once, whether or not
// it follows the version in force; if changes are missing, the lists are asked
// for. It reports whether the delta was genuine.
func (g *Gateway) applyDelta(ctx context.Context, line []byte, w wanted, ack func(wire.Ack)) (genuine bool) {
	d, err := g.verifier.Delta(line)
	if err != nil {
		var refused *ListError
		errors.As(err, &refused)
		g.refuse(refused)
		ack(wire.Ack{List: wire.GrantsList, Version: g.cur.grants, Result: refused.Reason.Result()})
		w.both()
		return false
	}
	how := g.standing(d)
	given := d
	if how != follows {
		given = d.narrow()
	}
	switch how {
	case part:
		// Not only denied but taken out: the change is in force, and no list
		// comes that would know of it.
		given.From, given.NarrowOnly = d.To, false
	case late:
		given.Remove = nil // the grants in force are newer
	case gap:
		if g.cur.grants != 0 { // else the list is on its way, and this counts with it
			w.both()
		}
	}
	g.remember(d, line)
	if len(d.Locks)+len(d.Unlocks) > 0 {
		// The manifest of the policies has the locks as they are, and keeps them
		// for the next start.
		g.pullWhole(wire.PoliciesList, how != follows)
		w.want(wire.PoliciesList)
	}
	full := false
	store := sync.OnceValue(func() (err error) {
		if g.cur.grants == 0 && g.state.of(wire.GrantsList).Deltas == "" {
			return nil // with the list that is on its way
		}
		full, err = g.state.append(line)
		return err
	})
	given.Store = store
	g.state.saw(wire.GrantsList, d.To, "")
	g.badRows(wire.GrantsList, d.Faults)
	if how == follows || given.takesAway() {
		if err = g.cfg.Handler.Delta(ctx, given); err == nil {
			g.notStored(store())
		}
	}
	a := wire.Ack{List: wire.GrantsList, Version: d.To, Applied: err == nil, Result: reason.OK.Result()}
	switch {
	case err != nil:
		g.log.Error("delta not applied", zap.Uint64("to", d.To), zap.Error(err))
		a.Result = reason.InternalError.Result()
		w.both()
	case how == follows:
		g.inForceNow(wire.GrantsList, d.To, time.Time{})
		if len(d.Remove)+len(d.Rows) > 0 {
			g.setHalf(d.From == d.To)
		}
	}
	if how != gap || err != nil { // after a gap the list's own acknowledgement speaks
		ack(a)
	}
	if full {
		g.pullWhole(wire.GrantsList, true)
		w.want(wire.GrantsList)
	}
	return true
}

// pullWhole makes the next pull of a list unconditional.
func (g *Gateway) pullWhole(name wire.ListName, yes bool) {
	if yes {
		g.mu.Lock()
		g.whole[name] = true
		g.mu.Unlock()
	}
}

// remember keeps what a full list would not repeat.
func (g *Gateway) remember(d *Delta, line []byte) {
	g.mu.Lock()
	g.arrived++
	d.arrival = g.arrived
	g.mu.Unlock()
	g.cur.logDelta(d, append([]byte(nil), line...))
	if len(d.Locks)+len(d.Unlocks) > 0 {
		g.cur.recent = append(g.cur.recent, d)
		if n := len(g.cur.recent) - maxCarried; n > 0 {
			g.cur.recent = append([]*Delta(nil), g.cur.recent[n:]...)
		}
	}
	if len(d.Locks)+len(d.Unlocks)+len(d.Revoke) > 0 {
		g.cur.carried = append(g.cur.carried, carried{d.Time, append([]byte(nil), line...)})
	}
}

// carriedLines drops what is too old or too much, and returns the rest.
func (g *Gateway) carriedLines() [][]byte {
	c := g.cur.carried
	if n := len(c) - maxCarried; n > 0 {
		c = c[n:]
	}
	var keep []carried
	var lines [][]byte
	for _, l := range c {
		if g.cfg.Now().Sub(l.at) < carriedFor {
			keep = append(keep, l)
			lines = append(lines, l.line)
		}
	}
	g.cur.carried = keep
	return lines
}

// arrivedAfter returns the deltas that arrived after the n-th.
func arrivedAfter(ds []*Delta, n uint64) []*Delta {
	var out []*Delta
	for _, d := range ds {
		if d.arrival > n {
			out = append(out, d)
		}
	}
	return out
}

// mergeLocks applies the changes of locks of ds, in order, to locks.
func mergeLocks(locks []wire.LockRow, ds []*Delta) []wire.LockRow {
	out := append([]wire.LockRow(nil), locks...)
	drop := func(kind, id string) {
		kept := out[:0]
		for _, l := range out {
			if l.Kind != kind || l.ID != id {
				kept = append(kept, l)
			}
		}
		out = kept
	}
	for _, d := range ds {
		for _, u := range d.Unlocks {
			drop(u.Kind, u.ID)
		}
		for _, l := range d.Locks {
			drop(l.Kind, l.ID)
			out = append(out, l)
		}
	}
	return out
}
