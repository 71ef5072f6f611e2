package ctlclient

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
)

// Every message beyond the limit is in an alert: the first at once, those of
// the minute behind it in the next one. What is in time, what was made in an
// outage and what had no answer is in none.
func TestGCR002_M48_M91_EveryLateMessageIsInAnAlert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told, details []string
		d := deliveries{late: func(a alert.Alert) {
			if a.Code != alert.DeliveryLate {
				t.Errorf("alert %s, want 2.015", a.Code)
			}
			details = append(details, a.Detail)
		}, tell: func(v Delivery) { told = append(told, v.Type) }}
		late := func(table string, took time.Duration) { d.judge(Delivery{Type: table, Took: took}) }
		late("T10", LateAfter-1)
		d.judge(Delivery{Type: "T4", Took: time.Hour, Outage: true})
		d.judge(Delivery{Type: "T4", Took: time.Hour, Err: errors.New("none")})
		late("T11", LateAfter)
		for i := range 10 {
			time.Sleep(time.Second)
			late("T10", 4*time.Second+time.Duration(i)*time.Millisecond)
			d.remind()
		}
		if want := []string{"T11 took 3000 ms"}; !slices.Equal(details, want) {
			t.Errorf("raised %q within the minute, want %q", details, want)
		}
		time.Sleep(time.Minute)
		d.remind()
		d.remind()
		if want := []string{"T11 took 3000 ms", "10 messages, of which T10 took 4009 ms"}; !slices.Equal(details, want) {
			t.Errorf("raised %q, want %q", details, want)
		}
		if len(told) != 14 {
			t.Errorf("%d deliveries were passed on, want all 14", len(told))
		}
	})
}

// A control center that answers nobody in time gets, beyond the first few, no
// message twice; hedges that were answered first are given back, and answers in
// time earn more.
func TestHedgesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b budget
		spend := func() (n int) {
			for b.take() {
				b.settle(0, 1, false, false)
				n++
			}
			return n
		}
		if n := spend(); n != hedgeStart {
			t.Errorf("%d hedges at the start, want %d", n, hedgeStart)
		}
		time.Sleep(2*hedgeIdle + time.Millisecond)
		if n := spend(); n != 2 {
			t.Errorf("%d hedges after %v, want 2", n, 2*hedgeIdle)
		}
		for range 50 {
			b.settle(0, 0, true, false)
		}
		if n := spend(); n != 10 {
			t.Errorf("%d hedges after 50 answers in time, want 10", n)
		}
		for range 10000 {
			b.settle(0, 0, true, false)
		}
		if n := spend(); n != hedgeMost {
			t.Errorf("%d hedges after many answers in time, want %d", n, hedgeMost)
		}
		b.settle(0, 0, true, false)
		for range 4 {
			b.settle(0, 0, true, false)
		}
		for range 100 { // a dead path: each is answered by its hedge
			if !b.take() {
				t.Fatal("a hedge that was answered first was not given back")
			}
			b.settle(1, 1, false, false)
		}
		if s := b.stats(); s.Won != 100 || s.Withheld == 0 {
			t.Errorf("counted %+v", s)
		}
	})
}

// On a path with a round trip of a second the first hedge goes over a kept
// connection, when the answer is later than usual, but in time; elsewhere over
// a fresh one after 700 ms.
func TestHedgesFollowThePath(t *testing.T) {
	var p pace
	if h := p.plan()[0]; h.after != hedgeAfter || !h.fresh {
		t.Errorf("of an unknown path: %+v", h)
	}
	for range 100 {
		p.took(2 * time.Millisecond)
	}
	if h := p.plan()[0]; h.after != hedgeAfter || !h.fresh {
		t.Errorf("of a fast path: %+v", h)
	}
	for range 100 {
		p.took(1010 * time.Millisecond)
	}
	if h := p.plan()[0]; h.after < time.Second || h.after > hedgeLatest || h.fresh {
		t.Errorf("of a slow path: %+v", h)
	}
	for range 100 {
		p.took(9 * time.Second)
	}
	if h := p.plan(); h[0].after != hedgeLatest || h[0].after+h[1].after > LateAfter {
		t.Errorf("of a control center that takes 9 s: %+v", h)
	}
}
