package fault

import (
	"context"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/control"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/test/testbed"
)

// A control center that misbehaves, one way after the other, under alerts and
// revocations: afterwards everything is there, once, and what it says wrongly
// has changed nothing.
func TestGCR002_M49_R20_ControlCenterMisbehaves(t *testing.T) {
	long := shorter(10*time.Minute, 40*time.Second)
	for _, fault := range control.Faults {
		t.Run(fault, func(t *testing.T) {
			inBubble(t, nil, func(w *world) {
				r := control.ChaosRule{Fault: fault, Probability: .3}
				switch fault {
				case "delay":
					r.For = control.Duration(2 * time.Second)
				case "stall":
					r.Probability = .1
				case "skew":
					r.For, r.Probability = control.Duration(time.Hour), 1
				}
				ctx := context.Background()
				_, err := w.site.Chaos(ctx, control.ChaosPlan{Seed: 5, Until: control.Duration(time.Hour), Steps: []control.ChaosStep{
					{For: control.Duration(long), Rules: []control.ChaosRule{r}},
				}})
				w.must(err)
				rows, version, _ := w.gw.Rows()
				stop := every(shorter(2*time.Second, 4*time.Second), w.raise)
				time.Sleep(long)
				stop()
				_, err = w.site.Chaos(ctx, control.ChaosPlan{})
				w.must(err)
				time.Sleep(2 * time.Minute) // the longest back-off
				if now, v, _ := w.gw.Rows(); now != rows || v < version {
					t.Errorf("%d rows of version %d are in force, before it were %d of %d", now, v, rows, version)
				}
				w.raise()
				live := w.live()
				if live > 3*time.Second {
					t.Errorf("an alert after it took %v", live)
				}
				if took := w.lock(3 * time.Second); took > 3*time.Second {
					t.Errorf("a revocation after it took %v", took)
				}
				w.settle(5 * time.Minute)
				w.complete()
				s := w.gw.Status()
				t.Logf("%s: %d sessions, %d streams reopened, %d lists refused; a live alert after it took %v", fault, s.Sessions, s.Reopened, s.Refused, live)
			})
		})
	}
}

// Answers that come 4 s late are late, and said to be: alert 2.015 (clause 7.2).
func TestGCR002_M48_LateMessagesAreAlerted(t *testing.T) {
	inBubble(t, nil, func(w *world) {
		_, err := w.site.Chaos(context.Background(), control.ChaosPlan{Steps: []control.ChaosStep{
			{Rules: []control.ChaosRule{{Fault: "delay", Match: "T11", For: control.Duration(4 * time.Second)}}},
		}})
		w.must(err)
		w.raise()
		time.Sleep(10 * time.Second)
		if n := w.gw.Own.Count(alert.DeliveryLate); n != 1 || w.worst["T11"] < 4*time.Second {
			t.Errorf("alert 2.015 was raised %d times, the worst T11 took %v; want once, for 4s", n, w.worst["T11"])
		}
	})
}

// Faults of half of the push stream's writes, and of half of the streams that
// are opened in its place: a revocation is there within 3 s, by a pull.
func TestR20_PushStreamMisbehaves(t *testing.T) {
	for _, fault := range []string{"drop", "drop-answer", "corrupt", "stall", "duplicate"} {
		t.Run(fault, func(t *testing.T) {
			inBubble(t, nil, func(w *world) {
				_, err := w.site.Chaos(context.Background(), control.ChaosPlan{Seed: 3, Until: control.Duration(time.Hour), Steps: []control.ChaosStep{
					{Rules: []control.ChaosRule{{Fault: fault, Match: "events", Probability: .5}}},
				}})
				w.must(err)
				var worst time.Duration
				rounds := 2
				if testbed.Long() {
					rounds = 5
				}
				for range rounds {
					worst = max(worst, w.lock(75*time.Second))
					w.unlock()
					time.Sleep(61 * time.Second)
				}
				if worst >= 3*time.Second {
					t.Errorf("the worst revocation took %v, want less than 3s", worst)
				}
				t.Logf("%s of half of the push stream's writes: worst revocation %v", fault, worst)
			})
		})
	}
}

// Every push stream stalls, silently, the ones that are opened in its place,
// too: a revocation is there within 3 s, whenever in the stall it is made.
func TestGCR002_M48_RevocationInASilentStall(t *testing.T) {
	inBubble(t, nil, func(w *world) {
		var worst time.Duration
		for i := range 6 {
			_, err := w.site.Chaos(context.Background(), control.ChaosPlan{Until: control.Duration(time.Hour), Steps: []control.ChaosStep{
				{Rules: []control.ChaosRule{{Fault: "stall", Match: "events", For: control.Duration(10 * time.Minute)}}},
			}})
			w.must(err)
			time.Sleep(time.Duration(i) * 500 * time.Millisecond)
			took := w.lock(10 * time.Second)
			worst = max(worst, took)
			if took >= 3*time.Second {
				t.Errorf("a revocation %v into the stall took %v, want less than 3s", time.Duration(i)*500*time.Millisecond, took)
			}
			w.unlock()
			_, err = w.site.Chaos(context.Background(), control.ChaosPlan{})
			w.must(err)
			time.Sleep(time.Minute)
		}
		if st := w.gw.Status(); !st.Push || st.Sessions != 1 {
			t.Errorf("afterwards: %+v, want push and the session of the start", st)
		}
		t.Logf("every push stream stalls: worst revocation %v", worst)
	})
}

// A control center that takes 2 s for everything is slow, not away: after the
// first few, its parties send it each message once, and nothing is lost.
func TestGCR002_M48_SlowControlCenterIsNotFlooded(t *testing.T) {
	inBubble(t, nil, func(w *world) {
		_, err := w.site.Chaos(context.Background(), control.ChaosPlan{Until: control.Duration(time.Hour), Steps: []control.ChaosStep{
			{Rules: []control.ChaosRule{{Fault: "delay", For: control.Duration(2 * time.Second)}}},
		}})
		w.must(err)
		before := [2]ctlclient.Hedges{w.gw.Status().Hedges, w.ag.Status().Hedges}
		_, repeats := w.site.Record.Taken("", "")
		stop := every(5*time.Second, w.raise)
		time.Sleep(5 * time.Minute)
		stop()
		_, after := w.site.Record.Taken("", "")
		_, err = w.site.Chaos(context.Background(), control.ChaosPlan{})
		w.must(err)
		time.Sleep(time.Minute)
		w.settle(5 * time.Minute)
		w.complete()
		const sent = 2 * 60
		if n := after - repeats; n > sent/3 {
			t.Errorf("%d repeats of %d alerts and the reports beside them: a slow control center is flooded", n, sent)
		}
		t.Logf("5 minutes of answers after 2 s: %d alerts, %d repeats; hedges of the gateway %+v after %+v, of the agent %+v after %+v",
			sent, after-repeats, w.gw.Status().Hedges, before[0], w.ag.Status().Hedges, before[1])
	})
}
