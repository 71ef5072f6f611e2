package gateway

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/clock"
)

// A clock that is set, forward or back, is alerted at once, each time.
func TestR17_ClockStepsAreAlerted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var offset time.Duration
		began := time.Now()
		now := func() time.Time { return time.Now().Add(offset) }
		a := newAlerts(zap.NewNop(), now)
		var got []alert.Alert
		var up alert.Sink = alert.Func(func(al alert.Alert) { got = append(got, al) })
		a.up.Store(&up)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- a.watchClock(ctx, clock.NewWatcher(now, func() time.Duration { return time.Since(began) }))
		}()
		for i, by := range []time.Duration{time.Hour, -time.Hour, -30 * time.Minute, 5 * time.Second} {
			time.Sleep(time.Minute)
			synctest.Wait()
			if len(got) != i {
				t.Fatalf("%d alerts before step %d: %+v", len(got), i+1, got)
			}
			offset += by
			time.Sleep(clockCheck + time.Millisecond)
			synctest.Wait()
			if len(got) != i+1 || got[i].Code != alert.ClockJump || got[i].Detail != "by "+by.String() {
				t.Fatalf("after a step of %v: %+v", by, got)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}
