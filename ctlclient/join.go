package ctlclient

import "time"

// A list takes seconds to make and to fetch when it is long, and changes come
// meanwhile. Those that came over the push stream are kept, and a list that is
// older than they are counts with them: otherwise a gateway that begins beside
// busy users would fetch for ever.

// The bounds of the changes that are kept for that.
const (
	maxLog      = 4096
	maxLogBytes = 8 << 20
	joinWait    = 500 * time.Millisecond // for a change that the control center has named and that is on its way
)

// logged is a delta as it came.
type logged struct {
	d    *Delta
	line []byte
}

// logDelta keeps d for lists that are on their way.
func (c *current) logDelta(d *Delta, line []byte) {
	c.log = append(c.log, logged{d, line})
	c.logBytes += len(line)
	drop := 0
	for drop < len(c.log) && (len(c.log)-drop > maxLog || c.logBytes > maxLogBytes) {
		c.logBytes -= len(c.log[drop].line)
		drop++
	}
	if drop > 0 {
		c.log = append([]logged(nil), c.log[drop:]...)
	}
}

// join returns the deltas that lead from version to highest, and false when one
// is missing.
func (c *current) join(version, highest uint64) (after []logged, ok bool) {
	f := folding{version: version}
	for _, l := range c.log {
		if l.d.To < f.version || l.d.To == f.version && l.d.From < f.version && len(after) == 0 {
			continue // it is in the list
		}
		f.add(l.d)
		after = append(after, l)
	}
	return after, f.version >= highest
}

// dropLate drops a list that waits for changes.
func (c *current) dropLate() {
	if c.late != nil {
		c.late.down.drop()
		c.late, c.lateEnd = nil, nil
	}
}

// await keeps a list for the change that it waits for. Waiting on does not make
// it longer.
func (c *current) await(v verified) {
	v.down = v.down.take()
	if c.late != nil {
		c.late.down.drop()
	}
	if c.late = &v; c.lateEnd == nil {
		c.lateEnd = time.After(joinWait)
	}
}

// version returns the version of a list with the deltas that count with it.
func (v *verified) version() uint64 {
	f := folding{version: v.list.manifest.Version}
	for _, l := range v.after {
		f.add(l.d)
	}
	return f.version
}

// linesOf returns the lines to store beside a list: those that are carried, then
// the deltas that count with it, each once.
func linesOf(carried [][]byte, after []logged) [][]byte {
	seen := map[string]bool{}
	var out [][]byte
	for _, l := range after {
		seen[string(l.line)] = true
	}
	for _, line := range carried {
		if !seen[string(line)] {
			out = append(out, line)
		}
	}
	for _, l := range after {
		out = append(out, l.line)
	}
	return out
}
