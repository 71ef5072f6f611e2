package roles

import (
	"bufio"
	"encoding/json"
	"os"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
)

// Record is what a control center has seen and done: an [audit.Sink].
type Record struct {
	mu      sync.Mutex
	taken   map[string]int           // guarded by mu; by party and table: messages that had an effect
	repeats int                      // guarded by mu
	last    map[string]time.Time     // guarded by mu; by party and table
	gap     map[string]time.Duration // guarded by mu; largest between two
	raised  []alert.Alert            // guarded by mu
}

func newRecord() *Record {
	return &Record{taken: map[string]int{}, last: map[string]time.Time{}, gap: map[string]time.Duration{}}
}

// Write implements [audit.Sink].
func (r *Record) Write(a *audit.Record) {
	if a.Kind != audit.Interface && a.Kind != audit.Login {
		return
	}
	party := a.GatewayID + a.AgentID
	key := party + " " + a.Object
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !a.Allowed:
		return
	case a.Detail == "repeat":
		r.repeats++
		return
	}
	r.taken[key]++
	if last, ok := r.last[key]; ok {
		r.gap[key] = max(r.gap[key], now.Sub(last))
	}
	r.last[key] = now
}

func (r *Record) raise(a alert.Alert) {
	r.mu.Lock()
	r.raised = append(r.raised, a)
	r.mu.Unlock()
}

// Taken returns how many messages of a table had an effect, and how many
// repeats of any there were.
func (r *Record) Taken(party, table string) (effects, repeats int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.taken[party+" "+table], r.repeats
}

// Gap returns the largest distance between two messages of a table as they
// arrived.
func (r *Record) Gap(party, table string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gap[party+" "+table]
}

// ResetGaps forgets the distances so far.
func (r *Record) ResetGaps() {
	r.mu.Lock()
	clear(r.gap)
	r.mu.Unlock()
}

// Raised returns how often the control center raised an alert of its own.
func (r *Record) Raised(code alert.Code) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.raised {
		if a.Code == code {
			n++
		}
	}
	return n
}

// Arrived is one alert in the control center's file.
type Arrived struct {
	Received time.Time `json:"received"`
	Sender   string    `json:"sender"`
	MsgID    string    `json:"msg_id"`
	Time     string    `json:"time"`
	Type     string    `json:"type"`
	Content  string    `json:"content"`
}

// Arrivals reads the alerts that arrived.
func (s *Site) Arrivals() ([]Arrived, error) {
	f, err := os.Open(s.Alerts())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []Arrived
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var a Arrived
		if err := json.Unmarshal(in.Bytes(), &a); err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, in.Err()
}
