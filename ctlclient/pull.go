package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/wire"
)

// wanted holds the wishes for pulls; each has a capacity of one, for a pull
// answers every wish made before it began.
type wanted struct{ grants, policies chan struct{} }

func newWanted() wanted { return wanted{make(chan struct{}, 1), make(chan struct{}, 1)} }

func (w wanted) want(name wire.ListName) {
	c := w.grants
	if name == wire.PoliciesList {
		c = w.policies
	}
	select {
	case c <- struct{}{}:
	default:
	}
}

func (w wanted) both() { w.want(wire.GrantsList); w.want(wire.PoliciesList) }

// verified is a list on its way from a pull to the goroutine that applies.
type verified struct {
	name  wire.ListName
	list  *list // nil: refused, for err
	err   *ListError
	down  *download
	since uint64 // the grants' version when the pull began
	whole bool   // it was asked for whatever is in force: it counts even if it seems to be the same
	// arrived is how many deltas had come when the pull began: their locks are
	// in the list.
	arrived uint64
	after   []logged // deltas that came meanwhile and count with the list
	done    chan struct{}
}

// pull fetches a list for each wish and hands it over, verified. A list that is
// refused is reported and leaves the link up; what is no list at all ends the
// session.
func (g *Gateway) pull(ctx context.Context, name wire.ListName, wish <-chan struct{}) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wish:
		}
		if err := g.pullOnce(ctx, name); err != nil {
			return err
		}
	}
}

func (g *Gateway) pullOnce(ctx context.Context, name wire.ListName) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("the list takes too long"))
	defer cancel()
	head := http.Header{"Accept": {"application/x-ndjson"}}
	have, whole, since, arrived := g.have(name)
	if have != "" {
		head.Set("If-None-Match", have)
	}
	floor := g.state.floor(name) // a change that comes while the list is on its way makes it no forgery: the applier compares again
	resp, err := g.call.fetch(ctx, "/lists/"+string(name), head, g.call.pace.twice())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotModified && have != "":
		g.set(func(s *GatewayStatus) { s.LastPull = g.cfg.Now() })
		return nil
	case resp.StatusCode == http.StatusOK:
	case resp.StatusCode == http.StatusForbidden:
		return errNotIdentified
	default:
		return fmt.Errorf("%w: pull %s: HTTP status %d", ErrDown, name, resp.StatusCode)
	}

	d := g.state.download()
	defer d.drop()
	body := &stallReader{r: resp.Body, limit: g.cfg.RequestTimeout, stop: cancel}
	l, err := g.verifier.read(io.TeeReader(body, d), name, floor, arriving(g.cfg.Now))
	body.stopWatch()
	v := verified{name: name, list: l, down: d, since: since, whole: whole, arrived: arrived, done: make(chan struct{})}
	if err != nil && !errors.As(err, &v.err) {
		return down(err)
	}
	select {
	case g.verified <- v:
	case <-ctx.Done():
		return ctx.Err()
	}
	<-v.done // the applier always closes it
	if v.err != nil && (v.err.Reason == reason.MessageMalformed || body.n == 0) {
		return fmt.Errorf("%w: pull %s: %w", ErrDown, name, v.err)
	}
	if v.err == nil {
		g.set(func(s *GatewayStatus) { s.LastPull = g.cfg.Now() })
	}
	return nil
}

// have returns the entity tag of the list in force, or "" when the list should
// come whole: there is none, or half of its life is over and the same version
// may have a new one; and how far the deltas are.
func (g *Gateway) have(name wire.ListName) (etag string, whole bool, since, arrived uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := &g.status
	version, at, end := s.GrantsVersion, s.GrantsAt, s.GrantsNotAfter
	if name == wire.PoliciesList {
		version, at, end = s.PolicyVersion, s.PolicyAt, s.PolicyNotAfter
	}
	whole = g.whole[name]
	delete(g.whole, name)
	if now := g.cfg.Now(); whole || version == 0 || end.Sub(now) < now.Sub(at) {
		return "", whole, s.GrantsVersion, g.arrived
	}
	return fmt.Sprintf("%q", fmt.Sprintf("%s-%d", name, version)), false, s.GrantsVersion, g.arrived
}

// stallReader ends a request whose body stands still.
type stallReader struct {
	r     io.Reader
	limit time.Duration
	stop  func()
	timer *time.Timer
	n     int64
}

func (s *stallReader) Read(p []byte) (int, error) {
	if s.timer == nil {
		s.timer = time.AfterFunc(s.limit, s.stop)
	} else {
		s.timer.Reset(s.limit)
	}
	n, err := s.r.Read(p)
	s.n += int64(n)
	return n, err
}

func (s *stallReader) stopWatch() {
	if s.timer != nil {
		s.timer.Stop()
	}
}

// refuse reports a list or delta that was refused; the old one stays in force.
func (g *Gateway) refuse(err *ListError) {
	g.log.Error("list refused", zap.String("list", string(err.List)), zap.Stringer("reason", err.Reason), zap.Error(err))
	g.reports.own.Raise(alert.Alert{Code: alert.ListRefused, Reason: err.Reason, Detail: string(err.List)})
	g.set(func(s *GatewayStatus) { s.Refused++; s.LastRefusal = err.Error() })
}

// badRows reports the bad rows of a genuine list.
func (g *Gateway) badRows(name wire.ListName, faults []RowFault) {
	if len(faults) == 0 {
		return
	}
	f := faults[0]
	g.log.Error("list has bad rows", zap.String("list", string(name)), zap.Int("rows", len(faults)), zap.Int("first", f.Row), zap.Error(f.Err))
	g.reports.own.Raise(alert.Alert{
		Code: alert.ListBadRow, Reason: reason.ListBadRow,
		Detail: fmt.Sprintf("%s: %d bad rows, the first is row %d (%s)", name, len(faults), f.Row, f.ID),
	})
}
