package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/yumen-zt/yumen/wire"
)

// Change is one difference between two snapshots.
type Change struct {
	Kind    string `json:"kind"` // grant, policy, ceiling, app or lock
	ID      string `json:"id"`
	Op      string `json:"op"`               // added, removed or changed
	Detail  string `json:"detail,omitzero"`  // what changed; never a token
	Narrows bool   `json:"narrows,omitzero"` // it takes something away for sure
}

// String returns the change as one line.
func (c Change) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s %s", c.Op, c.Kind, c.ID, c.Detail))
}

// Diff returns what changed from a to b, in a fixed order. The snapshots must
// have the same [TokenKey], or every token counts as new.
func Diff(a, b *Snapshot) []Change {
	out := diffGrants(a, b)
	policyText := func(p wire.Policy) (string, string) { return p.PolicyID, p.PolicyType + " " + p.PolicyData }
	out = append(out, diffLists("policy", a.policies, b.policies, policyText, true)...)
	out = append(out, diffLists("ceiling", a.ceiling, b.ceiling, policyText, true)...)
	out = append(out, diffLists("app", a.appList, b.appList, func(p App) (string, string) {
		return p.ID, fmt.Sprintf("level %d, browser class refused: %v", p.Level, p.RefuseBrowser)
	}, false)...)
	out = append(out, diffLists("lock", a.locks, b.locks, func(l Lock) (string, string) {
		return l.Kind + " " + l.ID, "until " + endText(lockEnd(l))
	}, true)...)
	return out
}

func lockEnd(l Lock) int64 {
	if l.Until.IsZero() {
		return never
	}
	return nanos(l.Until)
}

// diffLists compares two small lists by key. restricts says that a new item
// takes something away; otherwise a missing one does.
func diffLists[T any](kind string, a, b []T, text func(T) (key, value string), restricts bool) []Change {
	gather := func(list []T) map[string]string {
		m := map[string]string{}
		for _, x := range list {
			k, v := text(x)
			if old, ok := m[k]; ok && old != v {
				parts := append(strings.Split(old, " | "), v)
				slices.Sort(parts)
				v = strings.Join(slices.Compact(parts), " | ")
			}
			m[k] = v
		}
		return m
	}
	was, is := gather(a), gather(b)
	var out []Change
	for k, v := range is {
		if old, ok := was[k]; !ok {
			out = append(out, Change{kind, k, "added", v, restricts})
		} else if old != v {
			out = append(out, Change{kind, k, "changed", old + " -> " + v, false})
		}
	}
	for k, v := range was {
		if _, ok := is[k]; !ok {
			out = append(out, Change{kind, k, "removed", v, !restricts})
		}
	}
	slices.SortFunc(out, func(x, y Change) int { return cmp.Or(cmp.Compare(x.ID, y.ID), cmp.Compare(x.Op, y.Op)) })
	return out
}

func diffGrants(a, b *Snapshot) []Change {
	var out []Change
	for i := range a.rows.n {
		g := a.rows.at(i)
		if g.flags&rowDead != 0 {
			continue
		}
		name := g.pair.user.String() + " " + g.pair.device.String()
		_, h := b.rows.findPair(&b.byPair, b.key.hash(g.pair), &g.pair)
		if h == nil {
			out = append(out, Change{"grant", name, "removed", "", true})
			continue
		}
		if detail, narrows := diffRow(a, g, b, h); detail != "" {
			out = append(out, Change{"grant", name, "changed", detail, narrows})
		}
	}
	for i := range b.rows.n {
		g := b.rows.at(i)
		if g.flags&rowDead != 0 {
			continue
		}
		if _, old := a.rows.findPair(&a.byPair, a.key.hash(g.pair), &g.pair); old == nil {
			out = append(out, Change{"grant", g.pair.user.String() + " " + g.pair.device.String(), "added",
				fmt.Sprintf("%s until %s", strings.Join(b.appNames(g.set), ","), endText(g.expires.nanos())), false})
		}
	}
	slices.SortFunc(out, func(x, y Change) int { return cmp.Compare(x.ID, y.ID) })
	return out
}

func (s *Snapshot) appNames(set uint32) []string {
	var out []string
	for _, n := range s.set(set) {
		out = append(out, s.apps[n].name)
	}
	slices.Sort(out)
	return out
}

func diffRow(a *Snapshot, g *grant, b *Snapshot, h *grant) (detail string, narrows bool) {
	var parts []string
	was, is := a.appNames(g.set), b.appNames(h.set)
	for _, n := range was {
		if !slices.Contains(is, n) {
			parts, narrows = append(parts, "-"+n), true
		}
	}
	for _, n := range is {
		if !slices.Contains(was, n) {
			parts = append(parts, "+"+n)
		}
	}
	if g.expires != h.expires {
		parts, narrows = append(parts, "until "+endText(h.expires.nanos())), narrows || h.expires < g.expires
	}
	if g.mac != h.mac {
		parts = append(parts, "new token")
	}
	if was, is := g.flags&(rowConflict|rowTokenBad), h.flags&(rowConflict|rowTokenBad); was != is {
		parts, narrows = append(parts, "conflicting rows"), narrows || is != 0
	}
	fact := func(name string, x, y any) {
		if x != y {
			parts = append(parts, fmt.Sprintf("%s %v -> %v", name, x, y))
		}
	}
	fact("level", g.level, h.level)
	fact("factors", g.factors, h.factors)
	fact("posture", g.posture, h.posture)
	fact("risk", g.risk, h.risk)
	fact("sign-in", endText(g.authTime.nanos()), endText(h.authTime.nanos()))
	return strings.Join(parts, ", "), narrows
}
