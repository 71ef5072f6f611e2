package control

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
)

// Faults are what a control center can be told to do wrong.
var Faults = []string{
	"delay",       // answers after Rule.For
	"drop",        // the request has no effect and no answer
	"drop-answer", // the request has its effect and no answer
	"duplicate",   // the request is handled twice
	"reorder",     // the request waits until another one has overtaken it, Rule.For at most
	"corrupt",     // one bit of the answer is flipped
	"error",       // HTTP status 500
	"stall",       // nothing for Rule.For, then the connection breaks
	"redirect",    // HTTP status 302 to another host
	"json",        // HTTP status 200 and JSON that is no envelope
	"signature",   // an answer whose signature is wrong
	"skew",        // the control center's clock is off by Rule.For; Match must be empty
}

// The bounds and defaults of a plan.
const (
	maxChaos       = 24 * time.Hour
	defaultChaos   = 10 * time.Minute
	maxChaosSteps  = 64
	maxChaosRules  = 64
	defaultStall   = 30 * time.Second
	defaultReorder = time.Second
)

// ChaosRule is one fault and where it happens.
type ChaosRule struct {
	Fault       string   `json:"fault"`                 // of [Faults]
	Match       string   `json:"match,omitempty"`       // a table (T11, X.ack, events), or a path's beginning; empty: everything
	Probability float64  `json:"probability,omitempty"` // 0 < p <= 1; default 1
	Count       int      `json:"count,omitempty"`       // ends the rule after so many faults; 0: none
	For         Duration `json:"for,omitzero"`          // of delay, reorder (default 1s), stall (default 30s), skew

	Hits int `json:"hits"` // how often it happened; of `show` only
}

// ChaosStep is a stretch of time with its rules.
type ChaosStep struct {
	For   Duration    `json:"for"`   // required, but for the last
	Rules []ChaosRule `json:"rules"` // none: a quiet time. The first that matches counts, but skew goes with others
}

// ChaosPlan is a script of faults. It ends by itself.
type ChaosPlan struct {
	Seed  uint64      `json:"seed,omitzero"`  // of the random choices
	Until Duration    `json:"until,omitzero"` // the whole; default 10m, most 24h
	Steps []ChaosStep `json:"steps"`
}

// Duration is a time.Duration that JSON spells as "1m30s".
type Duration time.Duration

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// IsZero reports whether d is 0.
func (d Duration) IsZero() bool { return d == 0 }

// ChaosState is what `yumen control chaos show` prints.
type ChaosState struct {
	Allowed bool       `json:"allowed"`
	On      bool       `json:"on"`
	Step    int        `json:"step"` // from 0
	Ends    time.Time  `json:"ends,omitzero"`
	Plan    *ChaosPlan `json:"plan,omitempty"`
}

// validate fills defaults in and returns every fault, joined.
func (p *ChaosPlan) validate() error {
	var errs []error
	fault := func(path, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: "+format, append([]any{path}, args...)...))
	}
	or(&p.Until, Duration(defaultChaos))
	if p.Until < 0 || time.Duration(p.Until) > maxChaos {
		fault("until", "%v is outside 0..%v", time.Duration(p.Until), maxChaos)
	}
	if len(p.Steps) == 0 || len(p.Steps) > maxChaosSteps {
		fault("steps", "%d steps, 1 to %d are needed", len(p.Steps), maxChaosSteps)
	}
	for i := range p.Steps {
		st := &p.Steps[i]
		if st.For < 0 || st.For == 0 && i < len(p.Steps)-1 {
			fault(fmt.Sprintf("steps[%d].for", i), "a time above 0 is needed (only the last step may have none)")
		}
		if len(st.Rules) > maxChaosRules {
			fault(fmt.Sprintf("steps[%d].rules", i), "%d rules, at most %d", len(st.Rules), maxChaosRules)
		}
		for j := range st.Rules {
			if err := st.Rules[j].validate(); err != nil {
				fault(fmt.Sprintf("steps[%d].rules[%d]", i, j), "%w", err)
			}
		}
	}
	return errors.Join(errs...)
}

func (r *ChaosRule) validate() error {
	if !slices.Contains(Faults, r.Fault) {
		return fmt.Errorf("fault %q is unknown (one of %s)", r.Fault, strings.Join(Faults, " "))
	}
	or(&r.Probability, 1)
	r.Hits = 0
	switch r.Fault {
	case "stall":
		or(&r.For, Duration(defaultStall))
	case "reorder":
		or(&r.For, Duration(defaultReorder))
	case "skew":
		if r.Match != "" {
			return errors.New("skew holds for everything (leave match out)")
		}
	}
	switch d := time.Duration(r.For); {
	case r.Probability < 0 || r.Probability > 1:
		return fmt.Errorf("probability %v is outside 0..1", r.Probability)
	case r.Count < 0:
		return fmt.Errorf("count %d is negative", r.Count)
	case d < 0 && r.Fault != "skew", d.Abs() > maxChaos:
		return fmt.Errorf("for: %v is outside 0..%v", d, maxChaos)
	case d == 0 && (r.Fault == "delay" || r.Fault == "skew"):
		return fmt.Errorf("%s needs a time (for)", r.Fault)
	}
	return nil
}

// chaos runs the plan in force. Durations are on the monotonic clock.
type chaos struct {
	s *Server

	mu      sync.Mutex
	plan    *ChaosPlan    // guarded by mu; nil: off
	began   time.Time     // guarded by mu
	rand    *rand.Rand    // guarded by mu
	timer   *time.Timer   // guarded by mu; ends the plan
	over    chan struct{} // guarded by mu; closed when the plan ends
	overtak chan struct{} // guarded by mu; closed at each request that passed, for reorder
}

func newChaos(s *Server) *chaos { return &chaos{s: s, overtak: make(chan struct{})} }

// set puts a checked plan in force, in the place of the one before.
func (c *chaos) set(p *ChaosPlan) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop()
	seed := p.Seed
	c.plan, c.began, c.rand, c.over = p, time.Now(), rand.New(rand.NewPCG(seed, seed)), make(chan struct{})
	c.timer = time.AfterFunc(time.Duration(p.Until), func() {
		c.mu.Lock()
		mine := c.plan == p
		if mine {
			c.stop()
		}
		c.mu.Unlock()
		if mine {
			c.s.audit.Write(&audit.Record{Time: c.s.cfg.Now(), Kind: audit.System, Remote: "local", Object: "chaos ended by itself", Allowed: true, Result: "ok"})
		}
	})
}

// off ends the plan. It reports whether there was one.
func (c *chaos) off() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.plan != nil
	c.stop()
	return was
}

func (c *chaos) stop() {
	if c.plan != nil {
		c.timer.Stop()
		close(c.over)
	}
	c.plan = nil
}

// step returns the step in force and its number; nil when there is none. The
// caller holds mu.
func (c *chaos) step() (*ChaosStep, int) {
	if c.plan == nil {
		return nil, 0
	}
	at := time.Since(c.began)
	for i := range c.plan.Steps {
		st := &c.plan.Steps[i]
		if at < time.Duration(st.For) || st.For == 0 {
			return st, i
		}
		at -= time.Duration(st.For)
	}
	return nil, len(c.plan.Steps)
}

// choose returns the fault of one request, and a channel that closes when the
// plan ends. An empty Fault means none.
func (c *chaos) choose(table, path string) (r ChaosRule, over <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st, _ := c.step()
	if st == nil {
		return ChaosRule{}, nil
	}
	for i := range st.Rules {
		r := &st.Rules[i]
		if r.Fault == "skew" || r.Count > 0 && r.Hits >= r.Count {
			continue
		}
		if r.Match != "" && r.Match != table && (r.Match[0] != '/' || !strings.HasPrefix(path, r.Match)) {
			continue
		}
		if c.rand.Float64() < r.Probability {
			r.Hits++
			return *r, c.over
		}
	}
	return ChaosRule{}, nil
}

// offset is how far the control center's clock is off.
func (c *chaos) offset() (d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if st, _ := c.step(); st != nil {
		for i := range st.Rules {
			if st.Rules[i].Fault == "skew" {
				d += time.Duration(st.Rules[i].For)
			}
		}
	}
	return d
}

func (c *chaos) state() ChaosState {
	c.mu.Lock()
	defer c.mu.Unlock()
	st, i := c.step()
	out := ChaosState{Allowed: true, On: st != nil, Step: i}
	if c.plan != nil {
		p := *c.plan
		p.Steps = slices.Clone(p.Steps)
		for i := range p.Steps {
			p.Steps[i].Rules = slices.Clone(p.Steps[i].Rules)
		}
		out.Plan, out.Ends = &p, c.began.Add(time.Duration(p.Until)).Round(0)
	}
	return out
}

// passed lets one request that waits to be overtaken go.
func (c *chaos) passed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.overtak)
	c.overtak = make(chan struct{})
}

func (c *chaos) overtaken() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.overtak
}

// warn says loudly that the control center misbehaves on purpose.
func (c *chaos) warn(what string) {
	c.s.log.Warn("chaos " + what)
	c.s.cfg.Alerts.Raise(alert.Alert{Code: alert.InternalFault, Time: c.s.cfg.Now(), Detail: "chaos " + what + ": this control center misbehaves on purpose"})
}
