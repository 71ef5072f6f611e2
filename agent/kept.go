package agent

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/go-json-experiment/json"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/tunnel/carrier"
	"github.com/yumen-zt/yumen/wire"
)

// The identity reports to a gateway (Table 14) of the time without a tunnel, and
// those without a reply, are kept on disk, sealed, and sent when there is one
// again, in order and with the time at which they were made (§8.2). The gateway
// gives them no other effect than a record: who is there now is in the hello.

const (
	keptBytes = 4 << 20                // on disk; older reports go, and are counted
	keptPause = 125 * time.Millisecond // between two: half of what a gateway takes a second
)

// keptReport is one of them.
type keptReport struct {
	UserID  string       `json:"user"`
	Renewal wire.Renewal `json:"renewal"`
}

// openKept makes the outbox of the tunnel: on disk where there are keys.
func (a *Agent) openKept(keys *keystore.Store) {
	if keys == nil {
		a.kept = ctlclient.NewMemory(ctlclient.MemoryConfig{Now: a.cfg.Now})
		return
	}
	c := ctlclient.DurableConfig{
		Dir: filepath.Join(a.cfg.StateDir, "tunnel-outbox"), Key: ctlclient.OutboxKey(keys), Reserve: -1,
		Alerts: alert.Func(a.raise), Logger: a.cfg.Logger, Now: a.cfg.Now,
	}
	for i := range c.Caps {
		c.Caps[i] = keptBytes
	}
	a.kept = ctlclient.NewDurable(c)
}

// keepIdentity makes the identity reports of the time without a tunnel, until
// ctx ends.
func (a *Agent) keepIdentity(ctx context.Context) error {
	if d, ok := a.kept.(*ctlclient.Durable); ok {
		if err := d.Open(); err != nil {
			a.log.Error("identity reports are kept in memory only", zap.Error(err))
			a.raise(alert.Alert{Code: alert.InternalFault, Detail: printable("identity reports are kept in memory only: " + err.Error())})
		}
	}
	t := time.NewTimer(renewalWait())
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		t.Reset(renewalWait())
		a.mu.Lock()
		s, away := a.session, a.tunnel == nil && len(a.gateways) > 0
		a.mu.Unlock()
		if s.in() && away {
			a.keep(s.userID, wire.Renewal{AuthToken: s.token, UpdateTime: wire.FormatTime(a.cfg.Now())})
		}
	}
}

// closeKept ends the outbox of the tunnel.
func (a *Agent) closeKept() {
	if d, ok := a.kept.(*ctlclient.Durable); ok {
		if err := d.Close(); err != nil {
			a.log.Error("outbox of the tunnel not closed well", zap.Error(err))
		}
	}
}

// keep stores a report. It does not wait for a link, only for the disk.
func (a *Agent) keep(userID string, m wire.Renewal) {
	raw, err := json.Marshal(&keptReport{userID, m})
	if err == nil {
		_, err = a.kept.Append(context.Background(), ctlclient.ClassIdentity, raw)
	}
	if err != nil {
		a.log.Error("identity report not stored", zap.Error(err))
	}
}

// replay sends what is kept over t, oldest first, until all is answered or t
// fails; then the next tunnel goes on. Reports of a user who has left since are
// nobody's on this tunnel, and go.
func (a *Agent) replay(ctx context.Context, t *live, userID string) {
	var after uint64
	sent := 0
	defer func() {
		if sent > 0 {
			a.log.Info("identity reports of the time without a tunnel sent", zap.String("gateway_id", t.gateway), zap.Int("reports", sent))
		}
	}()
	for {
		batch, err := a.kept.Next(ctlclient.ClassIdentity, after, 32)
		if err != nil {
			a.log.Error("outbox of the tunnel not read", zap.Error(err))
			return
		}
		if len(batch) == 0 {
			return
		}
		for _, e := range batch {
			after = e.Seq
			var k keptReport
			if err := json.Unmarshal(e.Payload, &k); err == nil && k.UserID == userID {
				if !a.replayOne(ctx, t, &k.Renewal) {
					return
				}
				sent++
			}
			if err := a.kept.Ack(ctlclient.ClassIdentity, e.Seq); err != nil {
				a.log.Error("outbox of the tunnel not written", zap.Error(err))
				return
			}
		}
	}
}

// replayOne reports whether the gateway has answered. That it refuses an old
// report is an answer.
func (a *Agent) replayOne(ctx context.Context, t *live, m *wire.Renewal) bool {
	one, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	err := t.Renew(one, m)
	var no *carrier.RefusedError
	if err != nil && !errors.As(err, &no) {
		return false
	}
	if no != nil {
		a.log.Warn("the gateway refused an identity report of the time without a tunnel", zap.String("gateway_id", t.gateway), zap.Error(err))
	}
	pause := time.NewTimer(keptPause)
	defer pause.Stop()
	select {
	case <-ctx.Done():
	case <-pause.C:
	}
	return true
}
