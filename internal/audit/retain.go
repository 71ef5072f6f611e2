package audit

import (
	"fmt"
	"os"
	"slices"
	"time"
)

// unsure is for how long nothing goes by its age after the clock was set forward:
// whoever sets it wrongly, or on purpose, must not empty the store.
const unsure = 24 * time.Hour

// prune removes the segments that are older than they must be, and, beyond
// Total, the oldest; a record says which.
func (w *sealedStore) prune(now time.Time) {
	total := w.size
	for _, f := range w.old {
		total += f.size
	}
	n, why := 0, "age"
	sure := w.ahead.IsZero() || time.Since(w.ahead) >= unsure
	for n < len(w.old) {
		until := time.Unix(0, w.head.made) // all of it was written before the next one began
		if n+1 < len(w.old) {
			until = w.old[n+1].made
		}
		over := w.Total > 0 && total > w.Total
		if (now.Sub(until) < w.KeepFor || !sure) && !over {
			break
		}
		if over {
			why = "total_bytes"
		}
		total -= w.old[n].size
		n++
	}
	if n > 0 {
		w.remove(n, why)
	}
}

// remove deletes the n oldest segments and says so in the store.
func (w *sealedStore) remove(n int, why string) {
	first, last := w.old[0].ordinal, w.old[n-1].ordinal
	for _, f := range w.old[:n] {
		os.Remove(f.path)
	}
	w.old = slices.Clone(w.old[n:])
	r := Record{Time: w.now(), Kind: System, Object: "audit delete", Remote: "local", Allowed: true, Result: "ok", Detail: fmt.Sprintf("segments %x to %x: %s", first, last, why)}
	_ = w.write(appendLine(nil, &r), 1) // on a full disk the missing segments speak for themselves
}

// removeBefore deletes the segments that hold nothing newer than t.
func (w *sealedStore) removeBefore(t time.Time) (n int) {
	for n < len(w.old) {
		until := time.Unix(0, w.head.made)
		if n+1 < len(w.old) {
			until = w.old[n+1].made
		}
		if until.After(t) {
			break
		}
		n++
	}
	if n > 0 {
		w.remove(n, "asked for all before "+t.UTC().Format(time.RFC3339))
	}
	return n
}
