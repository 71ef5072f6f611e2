package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/yumen-zt/yumen/wire"
)

// Reread gives the handler the lists that the state folder holds now. It is for
// a process that has given the folder to another one, which writes there and has
// verified what it wrote: Run has ended, here nothing is written, and every list
// is verified again. After an error what was in force before still is.
func (g *Gateway) Reread(ctx context.Context) error {
	const tries = 5 // the other one may be storing the next list
	var err error
	for i := range tries {
		if i > 0 {
			time.Sleep(20 * time.Millisecond)
		}
		var p *Policies
		var l *Grants
		var revoked *Delta
		if p, l, revoked, err = g.stored(); err != nil {
			continue
		}
		if err = g.cfg.Handler.Delta(ctx, revoked); err != nil {
			return err
		}
		if err = g.cfg.Handler.Policies(ctx, p); err != nil {
			return err
		}
		return g.cfg.Handler.Grants(ctx, l)
	}
	return fmt.Errorf("read the lists of the other process: %w", err)
}

// stored reads what versions.json names, and verifies it.
func (g *Gateway) stored() (*Policies, *Grants, *Delta, error) {
	s := &state{dir: g.cfg.StateDir, theirs: true}
	raw, err := os.ReadFile(filepath.Join(s.dir, "versions.json"))
	if err == nil {
		err = json.Unmarshal(raw, &s.v)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	g.state, g.cur = s, current{}
	deltas, err := g.loadDeltas()
	if err != nil {
		return nil, nil, nil, err
	}
	policies, err := g.readList(wire.PoliciesList, s.of(wire.PoliciesList))
	if err != nil {
		return nil, nil, nil, err
	}
	grants, err := g.readList(wire.GrantsList, s.of(wire.GrantsList))
	if err != nil {
		return nil, nil, nil, err
	}
	if policies == nil || grants == nil {
		return nil, nil, nil, errors.New("a list is not there")
	}
	p := policies.policies()
	p.Locks = mergeLocks(p.Locks, g.sinceLocks(deltas))
	d := &Delta{NarrowOnly: true, Time: g.cfg.Now(), Locks: mergeLocks(nil, g.sinceLocks(deltas))}
	for _, x := range deltas {
		d.Revoke = append(d.Revoke, x.Revoke...)
	}
	return p, withDeltas(grants.grants(), deltas), d, nil
}
