package control

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/internal/audit"
)

func TestChaosIsRefusedUnlessAllowed(t *testing.T) {
	w := newWorld(t)
	var st ChaosState
	w.do("GET", "/v1/chaos", nil, &st)
	err := w.admin.Do(t.Context(), "PUT", "/v1/chaos", ChaosPlan{Steps: []ChaosStep{{Rules: []ChaosRule{{Fault: "error"}}}}}, nil)
	if st.Allowed || err == nil || !strings.Contains(err.Error(), "--allow-chaos") {
		t.Errorf("state %+v, plan: %v; want a refusal that names --allow-chaos", st, err)
	}
	if n := len(w.audited("PUT /v1/chaos")); n != 1 {
		t.Errorf("%d audit records of the refusal, want 1", n)
	}
}

func TestChaosPlansAreChecked(t *testing.T) {
	for name, p := range map[string]ChaosPlan{
		"no steps":         {},
		"unknown fault":    {Steps: []ChaosStep{{Rules: []ChaosRule{{Fault: "quake"}}}}},
		"probability":      {Steps: []ChaosStep{{Rules: []ChaosRule{{Fault: "error", Probability: 1.5}}}}},
		"delay of nothing": {Steps: []ChaosStep{{Rules: []ChaosRule{{Fault: "delay"}}}}},
		"skew of one path": {Steps: []ChaosStep{{Rules: []ChaosRule{{Fault: "skew", Match: "T4", For: Duration(time.Hour)}}}}},
		"endless step":     {Steps: []ChaosStep{{}, {}}},
		"too long":         {Until: Duration(48 * time.Hour), Steps: []ChaosStep{{}}},
	} {
		if err := p.validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	p := ChaosPlan{Steps: []ChaosStep{{Rules: []ChaosRule{{Fault: "stall"}}}}}
	if err := p.validate(); err != nil || time.Duration(p.Until) != 10*time.Minute || time.Duration(p.Steps[0].Rules[0].For) != 30*time.Second {
		t.Errorf("defaults: %+v, %v", p, err)
	}
}

// A script runs its steps by the clock, strikes as often as it says, by its
// seed, and ends by itself.
func TestChaosRunsItsScriptAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{}
		c := newChaos(&Server{cfg: Config{}.Defaults(), audit: w})
		p := &ChaosPlan{Seed: 7, Until: Duration(30 * time.Minute), Steps: []ChaosStep{
			{For: Duration(time.Minute), Rules: []ChaosRule{{Fault: "drop", Match: "T11", Count: 3}, {Fault: "skew", For: Duration(time.Hour)}}},
			{For: Duration(time.Minute)},
			{Rules: []ChaosRule{{Fault: "error", Match: "/ztna/v1/agent", Probability: .25}}},
		}}
		if err := p.validate(); err != nil {
			t.Fatal(err)
		}
		strikes := func(n int, table, path string) (hits int) {
			for range n {
				if r, _ := c.choose(table, path); r.Fault != "" {
					hits++
				}
			}
			return hits
		}
		c.set(p)
		if a, b := strikes(10, "T11", "/x"), strikes(10, "T10", "/x"); a != 3 || b != 0 || c.offset() != time.Hour {
			t.Errorf("step 1: %d and %d strikes, clock off by %v; want 3, 0, 1h", a, b, c.offset())
		}
		time.Sleep(90 * time.Second)
		if n := strikes(10, "T11", "/x"); n != 0 || c.offset() != 0 {
			t.Errorf("step 2: %d strikes, clock off by %v; want none", n, c.offset())
		}
		time.Sleep(time.Minute)
		n := strikes(1000, "T22", "/ztna/v1/agent/alerts")
		if n < 200 || n > 300 {
			t.Errorf("step 3: %d of 1000 strikes, want a quarter", n)
		}
		c.set(p)
		p.Steps[2].Rules[0].Hits = 0
		time.Sleep(150 * time.Second)
		if again := strikes(1000, "T22", "/ztna/v1/agent/alerts"); again != n {
			t.Errorf("the same seed struck %d and %d times", n, again)
		}
		time.Sleep(30 * time.Minute)
		if n := strikes(1000, "T22", "/ztna/v1/agent/alerts"); n != 0 || c.state().On {
			t.Errorf("after its end: %d strikes, %+v", n, c.state())
		}
		if r := w.audited("chaos ended by itself"); len(r) != 1 || r[0].Kind != audit.System {
			t.Errorf("audit of the end: %+v", r)
		}
	})
}
