package ctlclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// load gives the handler what the state folder holds, so that a gateway serves
// without its control center: policies first, then the grants with their later
// deltas in them, then the locks and revocations. Each is verified again; what
// cannot be is not given out, and nothing is granted until the next pull. Of a
// folder that may be a restored copy only the locks and revocations count.
func (g *Gateway) load(ctx context.Context) {
	proved := g.proveState()
	if g.state.altered != nil {
		g.altered("versions.json", g.state.altered)
		return
	}
	if proved {
		g.state.sweep()
		if at := g.state.lastContact(); !at.IsZero() {
			g.set(func(s *GatewayStatus) { s.LastContact = at })
			if g.cfg.Contact != nil {
				g.cfg.Contact(at)
			}
		}
	}
	deltas, err := g.loadDeltas()
	if err != nil {
		g.altered("deltas", err) // a revocation may be lost: no grants
	}
	if l := g.loadList(wire.PoliciesList); l != nil {
		p := l.policies()
		p.Locks = mergeLocks(p.Locks, g.sinceLocks(deltas))
		if err := g.cfg.Handler.Policies(ctx, p); err != nil {
			g.log.Error("stored policies not applied", zap.Error(err))
			return
		}
		g.inForceNow(wire.PoliciesList, l.manifest.Version, l.notAfter)
	}
	if err == nil && g.cur.policies != 0 {
		g.loadGrants(ctx, deltas)
	}
	d := &Delta{NarrowOnly: true, To: g.cur.grants, Time: g.cfg.Now()}
	d.Locks = mergeLocks(nil, g.sinceLocks(deltas))
	for _, x := range deltas {
		d.Revoke = append(d.Revoke, x.Revoke...)
	}
	if d.takesAway() {
		if err := g.cfg.Handler.Delta(ctx, d); err != nil {
			g.log.Error("stored locks not applied", zap.Error(err))
		}
	}
}

// sinceLocks returns the deltas whose locks the stored policies may lack.
func (g *Gateway) sinceLocks(ds []*Delta) []*Delta {
	since := g.state.of(wire.PoliciesList).Since
	return slices.DeleteFunc(slices.Clone(ds), func(d *Delta) bool { return d.To < since })
}

// loadGrants folds the deltas into the stored grants and gives them out.
func (g *Gateway) loadGrants(ctx context.Context, deltas []*Delta) {
	l := g.loadList(wire.GrantsList)
	if l == nil {
		return
	}
	list := withDeltas(l.grants(), deltas)
	g.badRows(wire.GrantsList, list.Faults)
	if err := g.cfg.Handler.Grants(ctx, list); err != nil {
		g.log.Error("stored grants not applied", zap.Error(err))
		return
	}
	g.inForceNow(wire.GrantsList, list.Version, list.NotAfter)
}

// withDeltas folds the deltas since into list.
func withDeltas(list *Grants, deltas []*Delta) *Grants {
	f := folding{version: list.Version}
	for _, d := range deltas {
		f.add(d)
	}
	list.Rows, list.Version = f.rows(list.Rows), f.version
	list.Faults = append(list.Faults, f.faults...)
	return list
}

// loadList reads and verifies a stored list. The signer's certificate must have
// been valid when it signed: it lives shorter than a list may have to serve.
func (g *Gateway) loadList(name wire.ListName) *list {
	stored := g.state.of(name)
	l, err := g.readList(name, stored)
	var refused *ListError
	switch {
	case errors.As(err, &refused) && refused.Reason == reason.ListExpired:
		g.log.Warn("stored list has expired", zap.String("list", string(name)))
		g.reports.own.Raise(alert.Alert{Code: alert.ListStale, Reason: reason.ListExpired, Detail: string(name)})
		return nil
	case err != nil:
		g.altered(stored.File, err)
		return nil
	}
	return l
}

// readList returns nil when there is no list.
func (g *Gateway) readList(name wire.ListName, stored storedList) (*list, error) {
	if stored.File == "" || stored.Head == "" { // an older version wrote it otherwise: it comes anew
		return nil, nil
	}
	file, err := g.state.open(stored)
	if err != nil {
		return nil, err
	}
	defer file.f.Close()
	return g.verifier.read(file, name, Floor{}, origin{signedAt: signingTime(file.first), stored: true})
}

// loadDeltas verifies the stored deltas and raises the highest version to
// theirs.
func (g *Gateway) loadDeltas() ([]*Delta, error) {
	lines, err := g.state.deltas()
	if err != nil {
		return nil, err
	}
	var out []*Delta
	for i, line := range lines {
		d, err := g.verifier.delta(line, signingTime(line))
		if err != nil {
			return out, fmt.Errorf("line %d: %w", i+1, err)
		}
		g.state.saw(wire.GrantsList, d.To, "")
		g.remember(d, line)
		out = append(out, d)
	}
	return out, nil
}

// signingTime returns the time in the header of the first line of raw. The
// header is verified with it.
func signingTime(raw []byte) func() time.Time {
	line, _, _ := bytes.Cut(raw, []byte{'\n'})
	var at time.Time
	if h, err := envelope.Peek(line, wire.MaxMessage); err == nil {
		at, _ = wire.ParseTime(h.Timestamp)
	}
	return func() time.Time { return at }
}

// altered reports a state file that is not as it was written.
func (g *Gateway) altered(file string, err error) {
	g.log.Error("stored state refused", zap.String("file", file), zap.Error(err))
	g.reports.own.Raise(alert.Alert{Code: alert.StateAltered, Detail: file})
}
