package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// While the old process of an upgrade drains, the two tell each other what only
// one of them learns, over the connection of the hand-over, a line of JSON each.
//
//	new → old  what takes a right away, before it is in force in the new one;
//	           that a list or the configuration is another one, once it is stored
//	old → new  log-outs and alerts, between its audit records
//
// What the old one is told it puts in force with the code of every day. What it
// cannot put in force, and the end of the new one, end all that it still serves:
// a right that is over is never served on.

// notice is one line. Exactly one of its fields is set.
type notice struct {
	Narrow *access.Delta `json:"narrow,omitempty"` // denied and cut at once
	Rows   *rowsNotice   `json:"rows,omitempty"`   // the rest of a change of the grants
	Cut    *CutRequest   `json:"cut,omitempty"`
	List   *listNotice   `json:"list,omitempty"`
	Reload bool          `json:"reload,omitempty"` // the configuration file has been put in force

	LogOut *logOutNotice `json:"log_out,omitempty"`
	Alert  *alert.Alert  `json:"alert,omitempty"`
}

type rowsNotice struct {
	From    uint64               `json:"from"`
	To      uint64               `json:"to"`
	Remove  []access.Pair        `json:"remove,omitempty"`
	Rows    []ctlclient.GrantRow `json:"rows,omitempty"`
	Unlocks []policy.Lock        `json:"unlocks,omitempty"`
}

// listNotice names a whole list that is in force and stored.
type listNotice struct {
	Name    wire.ListName `json:"name"`
	Version uint64        `json:"version"`
}

type logOutNotice struct {
	SessionID string    `json:"session_id"`
	Expires   time.Time `json:"expires"`
}

// noticePrefix is how a notice begins among audit records.
const noticePrefix = `{"notice":`

func (n *notice) line() []byte {
	raw, err := json.Marshal(struct {
		Notice *notice `json:"notice"`
	}{n})
	if err != nil { // plain values alone
		panic(err)
	}
	return append(raw, '\n')
}

func parseNotice(line []byte) (*notice, error) {
	var in struct {
		Notice *notice `json:"notice"`
	}
	if err := json.Unmarshal(line, &in); err != nil || in.Notice == nil {
		return nil, fmt.Errorf("read notice of an upgrade: %.80q: %w", line, err)
	}
	return in.Notice, nil
}

// tellLimit is how long the other process may take for a notice.
const tellLimit = time.Second

// teller writes whole lines to the other process. After a line that it does not
// take the direction is closed, which the other one notices.
type teller struct {
	mu   sync.Mutex
	conn *net.UnixConn
	gone bool // guarded by mu
}

func (t *teller) tell(n notice) {
	line := n.line()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return
	}
	err := t.conn.SetWriteDeadline(time.Now().Add(tellLimit))
	if err == nil {
		_, err = t.conn.Write(line)
	}
	if err != nil {
		t.gone = true
		_ = t.conn.CloseWrite() // as in hangUp
	}
}

// hangUp says that nothing more is told: the other process ends.
func (t *teller) hangUp() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gone = true
	_ = t.conn.CloseWrite() // it may be closed
}

// tell tells the process before this one, if it still drains.
func (g *Gateway) tell(n notice) {
	if g.inherited != nil {
		g.inherited.tell(n)
	}
}

// narrowing is what of a change takes away; nil: nothing.
func narrowing(d *access.Delta) *access.Delta {
	if len(d.Remove)+len(d.Locks)+len(d.Revoke) == 0 {
		return nil
	}
	return &access.Delta{Remove: d.Remove, Locks: d.Locks, Revoke: d.Revoke}
}

// told takes what the process before this one has learned.
func (g *Gateway) told(line []byte) bool {
	if !bytes.HasPrefix(line, []byte(noticePrefix)) {
		return false
	}
	n, err := parseNotice(line)
	switch {
	case err != nil:
		g.log.Error("notice not understood", zap.Error(err))
	case n.LogOut != nil:
		g.loggedOut(n.LogOut.SessionID, n.LogOut.Expires)
	case n.Alert != nil:
		if up := g.alerts.up.Load(); up != nil {
			(*up).Raise(*n.Alert)
		}
	}
	return true
}

// heirAlerts gives alerts to the process that has taken over, whose link is up.
type heirAlerts struct{ to later }

// Raise implements [alert.Sink].
func (h heirAlerts) Raise(a alert.Alert) {
	n := notice{Alert: &a}
	_, _ = h.to.Write(n.line()) // the log has it
}

// maxOrders is how many notices may wait for what takes longer than a cut.
const maxOrders = 64

// obey puts in force what the new process says, until one of the two has ended.
func (g *Gateway) obey(c *net.UnixConn) {
	orders := make(chan func() error, maxOrders)
	var working sync.WaitGroup
	working.Go(func() {
		failed := false
		for f := range orders {
			if failed {
				continue
			}
			if err := f(); err != nil {
				failed = true
				g.endRest(err)
			}
		}
	})
	defer working.Wait()
	defer close(orders)
	in := bufio.NewReaderSize(c, 64<<10)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			g.endRest(fmt.Errorf("the new process says no more: %w", err))
			return
		}
		n, err := parseNotice(line)
		if err != nil {
			g.endRest(err)
			return
		}
		f := g.heed(n)
		if f == nil {
			continue
		}
		select {
		case orders <- f:
		default:
			g.endRest(fmt.Errorf("%d notices wait", maxOrders))
			return
		}
	}
}

// heed does at once what takes a right away, and returns what takes longer.
func (g *Gateway) heed(n *notice) func() error {
	switch {
	case n.Narrow != nil:
		g.tell(*n) // one that drains still, from an upgrade before
		g.access.Narrow(*n.Narrow)
	case n.Cut != nil:
		g.tell(*n)
		g.access.Cut(access.Selector(*n.Cut), reason.CutByOperator)
	case n.Rows != nil:
		return func() error {
			_, err := g.access.ApplyDelta(access.Delta{
				From: n.Rows.From, To: n.Rows.To, Remove: n.Rows.Remove, Grants: rows(n.Rows.Rows), Unlocks: n.Rows.Unlocks,
			}, nil)
			if err == nil {
				g.tell(*n)
				return nil
			}
			return g.reread()
		}
	case n.List != nil:
		return func() error {
			grants, policies := g.access.Snapshot().Version()
			if n.List.Name == wire.GrantsList && n.List.Version == grants || n.List.Name == wire.PoliciesList && n.List.Version == policies {
				return nil
			}
			return g.reread()
		}
	case n.Reload:
		return g.Reload
	}
	return nil
}

// reread puts in force what the new process has stored.
func (g *Gateway) reread() error {
	if g.link != nil {
		return g.link.Reread(context.Background())
	}
	s := g.site.Load()
	return g.lists.fromFiles(s.keys, s.cfg.Lists)
}

// endRest ends everything that holds a right, and grants nothing more.
func (g *Gateway) endRest(why error) {
	if g.drained.Load() {
		return
	}
	if n := g.access.EndAll(reason.Shutdown); n > 0 {
		g.log.Warn("what this process still served was ended before its drain was over", zap.Int("flows", n), zap.Error(why))
	}
	_, _ = g.access.Change(func(b *policy.Builder) { b.SetNoList(true) }, nil) // without a store nothing can fail
}
