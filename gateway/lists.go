package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/disk"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// lists is the end of walk (c): what ctlclient has verified becomes what access
// enforces. It is ctlclient's Handler; access orders narrowing, storing and
// widening.
type lists struct {
	g *Gateway

	mu       sync.Mutex // one list at a time
	grants   time.Time  // notAfter; guarded by mu
	policies time.Time  // notAfter; guarded by mu
	seen     seenFiles  // of list files; written by New, later under Gateway.reload
}

// notAfter is the end of the older list; the caller holds mu.
func (l *lists) notAfter() time.Time {
	if l.policies.IsZero() || !l.grants.IsZero() && l.grants.Before(l.policies) {
		return l.grants
	}
	return l.policies
}

// site puts the applications and the ceiling of a configuration in force. It
// waits for a list that is being built: that one was begun with the old
// applications and would bring them back.
func (l *lists) site(s *site) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Without a store nothing can fail; bad rows were refused with the file.
	_, _ = l.g.access.Change(func(b *policy.Builder) {
		b.SetApps(s.policyApps())
		b.SetCeiling(s.ceiling)
	}, nil)
	if s.cfg.Control != nil {
		l.g.access.SetStaleness(s.cfg.Staleness.Staleness, s.cfg.Staleness.Apps)
	}
}

// Grants puts a whole access grant list in force (Tables 6 and 7). Before the
// first policies nothing is granted: without them it would be too much.
func (l *lists) Grants(_ context.Context, g *ctlclient.Grants) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.grants
	l.grants = g.NotAfter
	b := l.g.access.Builder()
	b.SetNoList(l.policies.IsZero())
	b.SetVersion(g.Version)
	b.SetNotAfter(l.notAfter())
	addRows(b, g)
	faults, err := l.g.access.ApplyPages(b, g.Store)
	if err != nil {
		l.grants = old // the old rows stay, and so does their end
	} else {
		l.g.tell(notice{List: &listNotice{wire.GrantsList, g.Version}})
	}
	l.g.guard.changed(nil, err != nil)
	l.record("grants", g.Version, len(g.Faults)+len(faults), err)
	return err
}

// Policies puts a whole policy list and its locks in force (Tables 8 and 9).
func (l *lists) Policies(_ context.Context, p *ctlclient.Policies) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.policies
	l.policies = p.NotAfter
	faults, err := l.g.access.Change(func(b *policy.Builder) {
		setPolicies(b, p)
		b.SetNotAfter(l.notAfter())
		b.SetNoList(l.grants.IsZero())
	}, p.Store)
	if err != nil {
		l.policies = old
	} else {
		l.g.tell(notice{List: &listNotice{wire.PoliciesList, p.Version}})
	}
	l.g.guard.changed(nil, err != nil)
	l.record("policies", p.Version, len(faults), err)
	return err
}

// setPolicies gives b the policies and locks of p.
func setPolicies(b *policy.Builder, p *ctlclient.Policies) {
	bad := make([]policy.BadRow, 0, len(p.BadRows))
	for i, r := range p.BadRows {
		row := policy.BadRow{Index: i, PolicyID: r.PolicyID, Err: errors.New("breaks the rules of Table 9")}
		if i < len(p.Faults) {
			row.Index, row.Err = p.Faults[i].Row, p.Faults[i].Err
		}
		bad = append(bad, row)
	}
	b.SetPolicies(p.Rows, bad, p.Version)
	b.SetLocks(locks(p.Locks))
}

// both puts two lists in force as one, so that nothing that either takes away
// waits for the other.
func (l *lists) both(p *ctlclient.Policies, g *ctlclient.Grants, store func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldGrants, oldPolicies := l.grants, l.policies
	l.grants, l.policies = g.NotAfter, p.NotAfter
	b := l.g.access.Builder()
	setPolicies(b, p)
	b.SetNoList(false)
	b.SetVersion(g.Version)
	b.SetNotAfter(l.notAfter())
	addRows(b, g)
	faults, err := l.g.access.ApplyPages(b, store)
	if err != nil {
		l.grants, l.policies = oldGrants, oldPolicies
	} else {
		l.g.tell(notice{List: &listNotice{wire.PoliciesList, p.Version}})
		l.g.tell(notice{List: &listNotice{wire.GrantsList, g.Version}})
	}
	l.record("policies", p.Version, len(p.Faults), err)
	l.g.guard.changed(nil, err != nil)
	l.record("grants", g.Version, len(g.Faults)+len(faults), err)
	return err
}

// Delta puts a change in force: what it takes away at once, in any case.
func (l *lists) Delta(_ context.Context, d *ctlclient.Delta) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	change := access.Delta{
		From: d.From, To: d.To, Remove: pairs(d.Remove), Grants: rows(d.Rows), Locks: locks(d.Locks), Revoke: revocations(d.Revoke, l.g.now()),
	}
	defer l.g.remember(change.Revoke) // after it is in force
	for _, u := range d.Unlocks {
		change.Unlocks = append(change.Unlocks, policy.Lock{Kind: u.Kind, ID: u.ID})
	}
	if less := narrowing(&change); less != nil {
		l.g.tell(notice{Narrow: less})
	}
	if d.NarrowOnly {
		l.g.access.Narrow(change)
		l.g.guard.changed(&change, true)
		l.record("delta, narrow only", d.To, len(d.Faults), nil)
		return nil
	}
	faults, err := l.g.access.ApplyDelta(change, d.Store)
	if err == nil {
		l.g.tell(notice{Rows: &rowsNotice{change.From, change.To, change.Remove, d.Rows, change.Unlocks}})
	}
	l.g.guard.changed(&change, err != nil)
	l.record("delta", d.To, len(d.Faults)+len(faults), err)
	return err
}

func (l *lists) record(what string, version uint64, faults int, err error) {
	if l.g.handing.Load() { // the new process has a record of it
		return
	}
	r := &audit.Record{Time: l.g.now(), Kind: audit.List, GatewayID: l.g.id, Object: what, Allowed: err == nil, Result: "ok", Detail: fmt.Sprintf("version %d, %d faults", version, faults)}
	if err != nil {
		r.Result, r.Code, r.Detail = "not applied", reason.InternalError, err.Error()
	}
	l.g.audit.Write(r)
}

// addRows gives b the rows of g, some at a time: they are not held twice.
func addRows(b *policy.Builder, g *ctlclient.Grants) {
	b.Grow(len(g.Rows))
	for part := range slices.Chunk(g.Rows, 1000) {
		b.AddPage(rows(part))
	}
}

func rows(in []ctlclient.GrantRow) []policy.Row {
	out := make([]policy.Row, len(in))
	for i, r := range in {
		out[i] = policy.Row{Grant: r.Grant, Level: r.Level, Factors: policy.FactorsOf(r.Factors...), AuthTime: r.AuthTime, Posture: score(r.Posture), Risk: score(r.Risk), Sum: r.Sum}
	}
	return out
}

func score(n *int) policy.Score {
	if n == nil {
		return policy.Score{}
	}
	return policy.ScoreOf(*n)
}

func pairs(in []wire.PairRef) []access.Pair {
	var out []access.Pair
	for _, p := range in {
		out = append(out, access.Pair(p))
	}
	return out
}

// locks turns rows into locks. An end that cannot be read is none: the lock
// stays until it is taken away.
func locks(in []wire.LockRow) []policy.Lock {
	var out []policy.Lock
	for _, r := range in {
		k := policy.Lock{Kind: r.Kind, ID: r.ID, Message: r.Message}
		if t, err := wire.ParseTime(r.Until); err == nil {
			k.Until = t
		}
		out = append(out, k)
	}
	return out
}

// revocations turns rows into revocations. A time that cannot be read is now:
// every session that there is.
func revocations(in []wire.Revocation, now time.Time) []access.Revocation {
	var out []access.Revocation
	for _, r := range in {
		v := access.Revocation{SessionID: r.SessionID, UserID: r.UserID}
		if r.UserID != "" {
			t, err := wire.ParseTime(r.IssuedBefore)
			if err != nil {
				t = now
			}
			v.IssuedBefore = t
		}
		out = append(out, v)
	}
	return out
}

// seenFiles are the highest versions that list files have had, and what stood
// in them (S4): a version has one content.
type seenFiles struct {
	Grants         uint64 `json:"grants"`
	Policies       uint64 `json:"policies"`
	GrantsDigest   string `json:"grants_digest,omitempty"`
	PoliciesDigest string `json:"policies_digest,omitempty"`
}

func (l *lists) seenPath(state string) string { return filepath.Join(state, "list-files.json") }

// fromFiles reads, verifies and applies the signed list files: the lists of a
// gateway without a control center. Both are verified before one is applied,
// and their versions are stored between what they take away and what they give.
func (l *lists) fromFiles(keys *keystore.Store, f *ListsConfig) error {
	path := l.seenPath(l.g.site.Load().cfg.StateDir)
	raw, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("read versions of list files: %w", err)
	default:
		if err := json.Unmarshal(raw, &l.seen); err != nil {
			return fmt.Errorf("read versions of list files %s: %w (the file was altered; restore it)", path, err)
		}
	}
	p, g, err := l.verifyFiles(keys, f)
	if err != nil {
		return err
	}
	now := seenFiles{Grants: g.Version, Policies: p.Version, GrantsDigest: g.Digest, PoliciesDigest: p.Digest}
	return l.both(p, g, func() error {
		if now == l.seen {
			return nil
		}
		if l.g.handing.Load() { // the folder is the new process's, which has stored it
			l.seen = now
			return nil
		}
		if err := storeJSON(path, now); err != nil {
			return err
		}
		l.seen = now
		return nil
	})
}

// verifyFiles returns both lists, or why they are refused.
func (l *lists) verifyFiles(keys *keystore.Store, f *ListsConfig) (p *ctlclient.Policies, g *ctlclient.Grants, err error) {
	roots, err := keys.Root(keystore.ListRoot)
	if err != nil {
		return nil, nil, err
	}
	dec, err := keys.Decrypter(keystore.Enc)
	if err != nil {
		return nil, nil, err
	}
	v, err := ctlclient.NewVerifier(ctlclient.VerifierConfig{GatewayID: l.g.id, DeviceID: l.g.device, Roots: roots, Decrypter: dec, Now: l.g.now})
	if err != nil {
		return nil, nil, err
	}
	open := func(name string, read func(*os.File) error) error {
		file, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("read list: %w", err)
		}
		defer file.Close()
		if err := read(file); err != nil {
			var le *ctlclient.ListError
			if errors.As(err, &le) {
				l.g.alerts.Raise(alert.Alert{Code: alert.ListRefused, Reason: le.Reason, Detail: name + ": " + le.Error()})
				l.g.audit.Write(&audit.Record{Time: l.g.now(), Kind: audit.List, GatewayID: l.g.id, Object: name, Result: le.Reason.String(), Code: le.Reason, Detail: le.Error()})
			}
			return fmt.Errorf("read list %s: %w", name, err)
		}
		return nil
	}
	err = open(f.Policies, func(r *os.File) (err error) {
		p, err = v.Policies(r, ctlclient.Floor{Version: l.seen.Policies, Digest: l.seen.PoliciesDigest})
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	err = open(f.Grants, func(r *os.File) (err error) {
		g, err = v.Grants(r, ctlclient.Floor{Version: l.seen.Grants, Digest: l.seen.GrantsDigest})
		return err
	})
	return p, g, err
}

// storeJSON puts v into path; see storeFile.
func storeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("store %s: %w", path, err)
	}
	return storeFile(path, b)
}

// storeFile puts b into path so that a crash leaves the old file or the new.
func storeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("store %s: %w", path, err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("store %s: %w", path, err)
	}
	return disk.SyncDir(filepath.Dir(path))
}
