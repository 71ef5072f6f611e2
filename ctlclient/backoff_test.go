package ctlclient

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"
)

func TestR20_BackoffIsBoundedByWhatFailed(t *testing.T) {
	var b backoff
	want := func(what string, d, mean time.Duration) {
		t.Helper()
		if d < mean*8/10 || d > mean*12/10 {
			t.Errorf("%s: %v, want %v ±20 %%", what, d, mean)
		}
	}
	refused, silent := down(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), errors.New("timeout")
	for i, mean := range []time.Duration{1, 2, 4, 8, 15, 15, 15} {
		want("refused", b.next(refused), mean*time.Second)
		if i == 6 {
			want("then silent", b.next(silent), 30*time.Second)
			want("then silent", b.next(silent), 60*time.Second)
			want("silent", b.next(silent), 60*time.Second)
			want("refused again", b.next(refused), 15*time.Second)
		}
	}
	b.reset()
	want("after a healthy link", b.next(silent), time.Second)
}

// A control center restarts, however long that takes: the gateway is back
// within 18 s of it.
func TestR20_GatewayIsBackSoonAfterARestart(t *testing.T) {
	site(t, func(t *testing.T, w *world, c *center, e *enforcer, cfg GatewayConfig) {
		dial, away := cfg.Dial, make(chan struct{}, 1)
		cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if len(away) > 0 {
				return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
			}
			return dial(ctx, network, addr)
		}
		g := newGateway(t, cfg)
		defer run(t, g.Run)()
		time.Sleep(time.Minute)
		for _, outage := range []time.Duration{3 * time.Second, 5 * time.Minute} {
			if !g.Status().Connected {
				t.Fatalf("before the outage: %+v", g.Status())
			}
			away <- struct{}{}
			c.setDead(true) // cuts what is open
			time.Sleep(outage)
			c.setDead(false)
			<-away
			time.Sleep(18*time.Second + time.Millisecond)
			if s := g.Status(); !s.Connected {
				t.Errorf("18 s after an outage of %v: %+v", outage, s)
			}
			time.Sleep(time.Minute)
		}
	})
}
