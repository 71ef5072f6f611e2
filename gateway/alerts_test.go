package gateway

import (
	"context"
	"strings"
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

// A certificate that ends soon is an alert.
func TestGCR002_M68_CertificatesThatEndSoonAreAlerted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		g := &Gateway{now: func() time.Time { return now }, log: zap.NewNop()}
		g.alerts = newAlerts(g.log, g.now)
		var got []alert.Alert
		var up alert.Sink = alert.Func(func(a alert.Alert) { got = append(got, a) })
		g.alerts.up.Store(&up)
		g.site.Store(&site{ends: map[string]time.Time{"tls.crt": now.Add(certificateWarning / 2), "sign.crt": now.Add(2 * certificateWarning)}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.watchCertificates(ctx) }()
		synctest.Wait()
		cancel()
		<-done
		if len(got) != 1 || got[0].Code != alert.CertExpiring || !strings.Contains(got[0].Detail, "tls.crt") || strings.Contains(got[0].Detail, "sign.crt") {
			t.Errorf("alerts %+v", got)
		}
	})
}
