// Package control is the reference control center of CSA GCR 002-2025: the
// policy decision point that enrols gateways, agents and applications, keeps
// users, grants, policies and locks, gives gateways their signed lists (Tables
// 4 to 11, clause 7) and agents their tokens and resources (Tables 16 to 22,
// clause 9), and pushes each revocation the moment it is committed.
//
// Start reading at [New] and [Server.Run]; the walk of a change is commit →
// store → follow (model.State.Apply) → hub → push stream. One file holds each
// link: gateway.go, lists.go and events.go (clause 7), agent.go (clause 9),
// enrol.go, admin.go.
package control

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emmansun/gmsm/smx509"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/control/idp"
	"github.com/yumen-zt/yumen/control/model"
	"github.com/yumen-zt/yumen/control/passwd"
	"github.com/yumen-zt/yumen/control/store"
	"github.com/yumen-zt/yumen/crypto/envelope"
	"github.com/yumen-zt/yumen/crypto/keystore"
	"github.com/yumen-zt/yumen/crypto/lab"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/internal/clock"
	"github.com/yumen-zt/yumen/wire"
)

// Server is a control center. Make one with [New].
type Server struct {
	damper  *alert.Damper // in front of cfg.Alerts
	cfg     Config
	log     *zap.Logger
	st      *store.Sealed
	keys    *keystore.Store
	ca      *lab.CA
	profile wire.Profile
	hasher  *passwd.Hasher
	users   *passwd.Limiter // failed passwords by user
	sources *passwd.Limiter // failed passwords and codes by address
	once    *envelope.Once
	hub     *hub
	lists   *listCache
	audit   audit.Sink
	journal *auditFile // nil when Config.Audit is set
	book    *book
	feed    *feed
	idp     *idp.Provider // nil: none

	sender    *envelope.Sender // answers
	own       atomic.Pointer[renewable]
	gatewayIn *envelope.Receiver
	agentIn   *envelope.Receiver
	links     face                // of the standard's links and of enrolment
	login     face                // of the OpenID provider
	tlsRoot   *x509.Certificate   // whose fingerprint enrolment codes carry
	tlcpRoot  *smx509.Certificate // the same for TLCP

	mu      sync.RWMutex
	state   *model.State  // guarded by mu; what its maps point to is immutable
	applied chan struct{} // guarded by mu; closed when state moves on
	failed  error         // guarded by mu; why state no longer follows the store

	creating sync.Mutex // held while an identifier is given away

	addrs   atomic.Pointer[Addrs]
	ready   chan struct{} // closed when every listener is open
	started atomic.Bool
	stats   counters
	pushed  *prometheus.HistogramVec
	chaos   *chaos // nil: not allowed
	port    portStats
}

// Addrs are the addresses that a running server listens on.
type Addrs struct {
	Links   []net.Addr
	IDP     []net.Addr
	Metrics []net.Addr
}

type counters struct {
	messages, refused, repeats, deltas, resyncs, lists, notModified, enrolled, differed atomic.Uint64
}

// New opens the store, the keys and the certificate authority that cfg names.
// Nothing runs until [Server.Run]; a server that is not run must be closed.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("make control center: %w", err)
	}
	cfg.defaults()
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	s := &Server{cfg: cfg, log: cfg.Logger, profile: wire.Profile{Strict: cfg.StrictWire}, feed: newFeed(), pushed: newPushLatency(),
		applied: make(chan struct{}), ready: make(chan struct{})}
	s.damper = alert.NewDamper(s.cfg.Alerts, alertDamping, s.cfg.Now)
	s.cfg.Alerts = s.damper
	if cfg.AllowChaos {
		c, now := newChaos(s), s.cfg.Now
		cfg.Now = func() time.Time { return now().Add(c.offset()) }
		s.cfg.Now, s.chaos = cfg.Now, c
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make control center: %w", err)
	}
	passphrase, err := keystore.ReadPassphrase(cfg.PassphraseFile)
	if err != nil {
		return nil, err
	}
	if err := s.openKeys(passphrase); err != nil {
		return nil, err
	}
	base, err := store.OpenBolt(store.BoltConfig{Path: filepath.Join(cfg.DataDir, "store.db")})
	if err != nil {
		return nil, err
	}
	if err := s.open(base, passphrase); err != nil {
		base.Close()
		return nil, err
	}
	return s, nil
}

// open fills what stands on the store.
func (s *Server) open(base store.Store, passphrase []byte) (err error) {
	if s.st, err = store.Seal(base, passphrase); err != nil {
		return err
	}
	if s.hasher, err = passwd.New(s.cfg.PasswordHash, 2); err != nil {
		return err
	}
	limit := passwd.LimiterConfig{Attempts: s.cfg.Lockout.Attempts, Window: s.cfg.Lockout.Window, Duration: s.cfg.Lockout.Duration, Now: s.cfg.Now}
	s.users = passwd.NewLimiter(limit)
	limit.Attempts = s.cfg.Lockout.PerSource
	s.sources = passwd.NewLimiter(limit)
	s.once = envelope.NewOnce(envelope.OnceConfig{Now: s.cfg.Now})
	if s.book, err = openBook(s.cfg.DataDir); err != nil {
		return err
	}
	s.audit = s.cfg.Audit
	if s.audit == nil {
		s.journal = newAuditFile(s.cfg.AuditFile, s.log, s.feed)
		s.audit = s.journal
	}
	// A new version at each start: what a gateway kept from before is renewed.
	if _, err := s.st.Txn(nil, []store.Op{store.Put(model.KeyRefresh, []byte("start"))}); err != nil {
		return err
	}
	rev, entries, err := s.st.Snapshot("")
	if err != nil {
		return err
	}
	if err := s.st.Compact(rev); err != nil {
		return err
	}
	browserKey := s.st.Key("browser token")
	state, faults := model.New(rev, entries, s.cfg.Now(), func(user string) string { return browserToken(browserKey, user) })
	for _, f := range faults {
		s.log.Error("entry of the store cannot be read", zap.String("error", f))
	}
	s.state, s.hub, s.lists = state, newHub(s.cfg.HistoryDepth, rev), newListCache()
	if s.cfg.IDP != nil {
		s.idp, err = s.newIDP()
	}
	return err
}

// Close closes a server that was not run.
func (s *Server) Close() error {
	if s.started.Load() {
		return errors.New("close control center: it is running (end its context)")
	}
	return s.close()
}

func (s *Server) close() error { return errors.Join(s.book.close(), s.st.Close()) }

// Ready is closed when every listener is open.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addrs returns where s listens, nil before [Server.Ready].
func (s *Server) Addrs() *Addrs { return s.addrs.Load() }

// view calls f with the state under the read lock. f must not keep the state,
// but what its maps point to is immutable and may be kept.
func (s *Server) view(f func(*model.State)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f(s.state)
}

// commit writes ops if the comparisons hold, and returns when the state has
// them and the push streams were told.
func (s *Server) commit(compares []store.Compare, ops ...store.Op) (rev uint64, err error) {
	rev, err = s.st.Txn(compares, ops)
	if err != nil {
		return 0, err
	}
	for {
		s.mu.RLock()
		at, wake, failed := s.state.Rev, s.applied, s.failed
		s.mu.RUnlock()
		if at >= rev {
			return rev, nil
		}
		if failed != nil {
			return rev, failed
		}
		<-wake
	}
}

// change reads the state and commits what plan makes of it, again when another
// writer was faster.
func (s *Server) change(plan func(*model.State) ([]store.Compare, []store.Op, error)) (rev uint64, err error) {
	for range 8 {
		var compares []store.Compare
		var ops []store.Op
		s.view(func(st *model.State) { compares, ops, err = plan(st) })
		if err != nil || len(ops) == 0 {
			return s.revision(), err
		}
		var conflict *store.ConflictError
		if rev, err = s.commit(compares, ops...); !errors.As(err, &conflict) {
			return rev, err
		}
	}
	return 0, err
}

func (s *Server) revision() (rev uint64) {
	s.view(func(st *model.State) { rev = st.Rev })
	return rev
}

// follow applies the store's transactions to the state and hands what changed
// to the streams, until ctx ends.
func (s *Server) follow(ctx context.Context) error {
	w, err := s.st.Watch(s.revision())
	for err == nil {
		var b store.Batch
		if b, err = w.Next(ctx); err != nil {
			break
		}
		s.mu.Lock()
		c := s.state.Apply(b, s.cfg.Now())
		if c.Delta() || c.Grants || c.Policies {
			s.hub.publish(&c)
		}
		close(s.applied)
		s.applied = make(chan struct{})
		s.mu.Unlock()
		for _, f := range c.Faults {
			s.log.Error("entry of the store cannot be read", zap.String("error", f))
		}
	}
	s.mu.Lock()
	s.failed = errors.New("the control center is shutting down")
	close(s.applied)
	s.applied = make(chan struct{})
	s.mu.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("follow store: %w", err)
}

// alertDamping is how long further alerts of one code and subject are held back,
// to be counted in the next one.
const alertDamping = 30 * time.Second

// keepLog is how many transactions the store's log keeps.
const keepLog = 4096

// sweep deletes what has ended, renews the lists before their notAfter and
// compacts the log, until ctx ends.
func (s *Server) sweep(ctx context.Context) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	renewed := s.cfg.Now()
	checked := renewed
	compacted := s.revision()
	began := time.Now()
	flushed := began
	wall := clock.NewWatcher(s.cfg.Now, func() time.Duration { return time.Since(began) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := s.cfg.Now()
		if time.Since(flushed) >= alertDamping {
			flushed = time.Now()
			s.damper.Flush()
		}
		if by, stepped := wall.Step(); stepped {
			s.cfg.Alerts.Raise(alert.Alert{Code: alert.ClockJump, Time: now, Detail: fmt.Sprintf("by %s", by.Round(time.Millisecond))})
		}
		s.sweepDue(now)
		if age := now.Sub(checked); age >= 6*time.Hour || age < 0 {
			checked = now
			if err := s.renewOwn(); err != nil {
				s.log.Error("certificates not renewed", zap.Error(err))
				s.cfg.Alerts.Raise(alert.Alert{Code: alert.CertExpiring, Time: now, Detail: err.Error()})
			}
		}
		if now.Sub(renewed) >= s.cfg.ListLife/4 || now.Before(renewed) {
			renewed = now
			if _, err := s.commit(nil, store.Put(model.KeyRefresh, []byte(wire.FormatTime(now)))); err != nil {
				s.log.Error("lists not renewed", zap.Error(err))
			}
		}
		// The log is for followers only; it goes in steps that hold no writer up.
		if rev := s.revision(); rev > compacted+2*keepLog {
			compacted = min(compacted+512, rev-keepLog)
			if err := s.st.Compact(compacted); err != nil {
				s.log.Error("log not compacted", zap.Error(err))
			}
		}
	}
}

func (s *Server) sweepDue(now time.Time) {
	const limit = 256
	for {
		s.mu.Lock() // Due takes its hints away
		compares, ops := s.state.Due(now, limit)
		s.mu.Unlock()
		if len(ops) == 0 {
			return
		}
		// One by one where somebody else was faster: the newer entry has a hint of
		// its own.
		if _, err := s.commit(compares, ops...); err != nil {
			for i := range ops {
				s.commit(compares[i:i+1], ops[i])
			}
		}
		for _, op := range ops {
			s.audit.Write(&audit.Record{Time: now, Kind: audit.System, Remote: "local", Object: "expired " + op.Key, Allowed: true, Result: "ok"})
		}
		if len(ops) < limit {
			return
		}
	}
}

func (s *Server) sortedParties() (ps []*model.Party) {
	s.view(func(st *model.State) { ps = slices.Collect(maps.Values(st.Parties)) })
	slices.SortFunc(ps, func(a, b *model.Party) int { return compareStrings(a.ID, b.ID) })
	return ps
}
