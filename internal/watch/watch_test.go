package watch

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAlarmsRingOnceAndNeverEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := New()
		go w.Run(ctx)
		var rang [3]atomic.Int64
		start := time.Now()
		var alarms [3]Alarm
		for i := range alarms {
			w.Add(&alarms[i], func() {
				rang[i].Add(1)
				if took := time.Since(start); took < time.Second || took > time.Second+3*Tick {
					t.Errorf("alarm %d rang after %v", i, took)
				}
			})
			time.Sleep(Tick / 3)
		}
		start = time.Now()
		for i := range alarms {
			alarms[i].Arm(time.Second)
		}
		alarms[1].Disarm()
		w.Remove(&alarms[2])
		w.Remove(&alarms[2])
		time.Sleep(3 * time.Second)
		if rang[0].Load() != 1 || rang[1].Load() != 0 || rang[2].Load() != 0 {
			t.Errorf("rang %d %d %d times", rang[0].Load(), rang[1].Load(), rang[2].Load())
		}
		w.Remove(&alarms[0])
		w.Remove(&alarms[1])
		if len(w.alarms) != 0 {
			t.Errorf("%d alarms left", len(w.alarms))
		}
		cancel()
		synctest.Wait()
	})
}

func BenchmarkArm(b *testing.B) {
	w := New()
	var a Alarm
	w.Add(&a, func() {})
	for b.Loop() {
		a.Arm(time.Second)
		a.Disarm()
	}
}
