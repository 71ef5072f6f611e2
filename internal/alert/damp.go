package alert

import (
	"sync"
	"time"
)

// Damper passes the first alert of a key at once and then at most one each
// Interval; what it held back is counted in the Repeats of the next one, so
// flapping is damped and never silent (M69). A key is the code with the
// subject concerned. It is safe for concurrent use.
type Damper struct {
	next     Sink
	interval time.Duration
	now      func() time.Time

	mu   sync.Mutex
	seen map[dampKey]*dampState // guarded by mu; at most maxDampKeys, and one more for each code
}

type dampKey struct{ code, user, device, app, remote string }

type dampState struct {
	last time.Time
	held int
	tail Alert // the newest that was held back
}

const maxDampKeys = 4096

// NewDamper returns a damper in front of next. now is the clock.
func NewDamper(next Sink, interval time.Duration, now func() time.Time) *Damper {
	return &Damper{next: next, interval: interval, now: now, seen: map[dampKey]*dampState{}}
}

// Raise passes a on, or counts it.
func (d *Damper) Raise(a Alert) {
	if a.Time.IsZero() {
		a.Time = d.now()
	}
	if a.Level == 0 {
		if e, ok := byCode[a.Code]; ok {
			a.Level = e.Level
		}
	}
	k := dampKey{string(a.Code), a.UserID, a.DeviceID, a.AppID, a.Remote}
	now := d.now()
	d.mu.Lock()
	s, ok := d.seen[k]
	if ok && d.early(now, s) {
		s.held++
		s.tail = a
		d.mu.Unlock()
		return
	}
	if !ok && len(d.seen) >= maxDampKeys {
		// A flood of new keys is neither a way to be silent nor one to drown the
		// rest: from here on one subject stands for all the others of its code.
		k = dampKey{code: string(a.Code), remote: "others"}
		if s, ok = d.seen[k]; ok && d.early(now, s) {
			s.held++
			s.tail = a
			d.mu.Unlock()
			return
		}
	}
	if !ok {
		s = &dampState{}
		d.seen[k] = s
	}
	a.Repeats += s.held
	s.last, s.held = now, 0
	d.mu.Unlock()
	d.next.Raise(a)
}

// Flush passes on, for every key whose interval is over, the newest alert that
// was held back, and forgets the keys that are quiet. Call it about once an
// interval.
func (d *Damper) Flush() {
	now := d.now()
	var due []Alert
	d.mu.Lock()
	for k, s := range d.seen {
		switch {
		case d.early(now, s):
		case s.held > 0:
			s.tail.Repeats = s.held - 1
			due = append(due, s.tail)
			s.last, s.held = now, 0
		default:
			delete(d.seen, k)
		}
	}
	d.mu.Unlock()
	for _, a := range due {
		d.next.Raise(a)
	}
}

// early reports whether s passed less than an interval ago. A clock that was
// set back must not silence what it makes young.
func (d *Damper) early(now time.Time, s *dampState) bool {
	age := now.Sub(s.last)
	return age >= 0 && age < d.interval
}
