package mux

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// RelayConfig says how a relay ends.
type RelayConfig struct {
	// Broken is the reason of the reset when the connection beside the flow
	// fails; required.
	Broken reason.Reason
	// Idle ends an association without a datagram for so long; default 60 s.
	// Streams have no limit.
	Idle time.Duration
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

// Relay moves bytes both ways between f and c, half-closes each as the other's
// end comes, and returns when both directions have ended: OK, or the reason of
// the reset. It closes both. When the flow is reset, c is freed at once,
// whatever it is waiting for, and its peer is told by a reset where TCP can.
func Relay(f *Flow, c net.Conn, cfg RelayConfig) reason.Reason {
	f.OnReset(func() { _ = c.SetDeadline(past) })
	if f.datagrams {
		relayDatagrams(f, c, cfg)
	} else {
		relayStream(f, c, cfg)
	}
	r := f.Reason()
	if r != reason.OK {
		if t, ok := c.(interface{ SetLinger(int) error }); ok {
			_ = t.SetLinger(0)
		}
	}
	_ = c.Close()
	_ = f.Close()
	return r
}

func relayStream(f *Flow, c net.Conn, cfg RelayConfig) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := f.ReadFrom(c)
		if err != nil {
			f.Reset(why(err, cfg))
			return
		}
		_ = f.CloseWrite()
	})
	if _, err := f.WriteTo(c); err != nil {
		f.Reset(why(err, cfg))
	} else if h, ok := c.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite()
	}
	wg.Wait()
}

// why names the reason of a reset: the flow's own, or that c failed.
func why(err error, cfg RelayConfig) reason.Reason {
	var re *ResetError
	if errors.As(err, &re) {
		return re.Reason
	}
	return cfg.Broken
}

func relayDatagrams(f *Flow, c net.Conn, cfg RelayConfig) {
	idle := cfg.Idle
	if idle == 0 {
		idle = time.Minute
	}
	var ended atomic.Bool // by the agent's CLOSE
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			seen := f.BytesIn()
			_ = c.SetReadDeadline(time.Now().Add(idle))
			if ended.Load() || f.Reason() != reason.OK {
				return // the deadline above took the place of the one that should end us
			}
			_, err := f.ReadFrom(c)
			if ended.Load() {
				return
			}
			if errors.Is(err, os.ErrDeadlineExceeded) && f.BytesIn() != seen {
				continue
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				f.Reset(reason.IdleTimeout)
				return
			}
			f.Reset(why(err, cfg))
			return
		}
	})
	// The association ends with the agent's CLOSE, or with an error.
	_, err := f.WriteTo(c)
	if err != nil {
		f.Reset(why(err, cfg))
	} else {
		ended.Store(true)
		_ = c.SetDeadline(past)
	}
	wg.Wait()
}
