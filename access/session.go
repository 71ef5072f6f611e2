package access

import (
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Session is an authenticated subject. Its methods are safe for concurrent use.
type Session struct {
	id       string
	since    time.Time
	subject  atomic.Pointer[policy.Subject] // replaced by Renew and by a newer sign-in
	lastUsed atomic.Int64                   // unix nanoseconds
	channel  atomic.Pointer[channel]        // nil until known
	done     chan struct{}                  // closed when the session ends, under mu

	mu        sync.Mutex
	ended     bool          // guarded by mu
	why       reason.Reason // guarded by mu
	leases    []*Lease      // guarded by mu
	usages    []*usage      // guarded by mu; one each application, referenced until the end
	updated   time.Time     // updateTime of the newest Table 14; guarded by mu
	renewed   time.Time     // when it came; guarded by mu
	refusedAt time.Time     // start of the minute; guarded by mu
	refused   int           // refusals in it; guarded by mu

	dueAt atomic.Int64 // when the monitor must look; unix nanoseconds
	pos   int          // in the schedule, -1 outside; guarded by schedule.mu
	gone  bool         // must not be scheduled again; guarded by schedule.mu
}

// channel is the transport that a session was last seen on.
type channel struct{ protocol, suite string }

// Over says which protocol, such as "tlcp", and cipher suite the session's
// connection has. Acquire does so by itself, for carriers that describe it.
func (s *Session) Over(protocol, suite string) {
	if c := s.channel.Load(); c == nil || c.protocol != protocol || c.suite != suite {
		s.channel.Store(&channel{protocol, suite})
	}
}

// ID returns the session's id.
func (s *Session) ID() string { return s.id }

// Facts returns what is known of the session.
func (s *Session) Facts() policy.Facts { return s.subject.Load().Facts() }

// Since returns when the session was attached first.
func (s *Session) Since() time.Time { return s.since }

// Done is closed when the session has ended, for whatever reason.
func (s *Session) Done() <-chan struct{} { return s.done }

// Reason says why the session ended; OK while it lives.
func (s *Session) Reason() reason.Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}

func (s *Session) live() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.ended
}

func (s *Session) touch(now time.Time) { s.lastUsed.Store(now.UnixNano()) }

// issued is when the session's sign-in was, for revocations by time.
func (s *Session) issued() time.Time { return issued(s.Facts(), s.since) }

func issued(f policy.Facts, since time.Time) time.Time {
	if !f.AuthTime.IsZero() {
		return f.AuthTime
	}
	return since
}

// copyLeases appends the leases of s to buf.
func (s *Session) copyLeases(buf []*Lease) []*Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(buf, s.leases...)
}

// table finds sessions by id. It is sharded so that requests of different
// sessions do not meet.
type table struct {
	seed   maphash.Seed
	n      atomic.Int64
	shards [64]struct {
		mu   sync.Mutex
		byID map[string]*Session // guarded by mu
		_    [40]byte            // its own cache line
	}
}

func (t *table) init() {
	t.seed = maphash.MakeSeed()
	for i := range t.shards {
		t.shards[i].byID = map[string]*Session{}
	}
}

// shard returns where id is kept: a session and its parts share one.
func (t *table) shard(id string) int {
	return int(maphash.String(t.seed, whole(id)) % uint64(len(t.shards)))
}

// whole returns the session that id belongs to. The id "sid/device" names a
// part of the sign-in "sid": the same subject on that device. What revokes or
// locks the whole does so for every part.
func whole(id string) string {
	sid, _, _ := strings.Cut(id, "/")
	return sid
}

// parts returns the live sessions that belong to id: itself and its parts.
func (t *table) parts(id string) []*Session {
	sh := &t.shards[t.shard(id)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var out []*Session
	for k, s := range sh.byID {
		if k == id || whole(k) == id {
			out = append(out, s)
		}
	}
	return out
}

func (t *table) get(id string) *Session {
	sh := &t.shards[t.shard(id)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.byID[id]
}

// put inserts s unless its id is taken; it returns the session that holds it.
func (t *table) put(s *Session) *Session {
	sh := &t.shards[t.shard(s.id)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if old := sh.byID[s.id]; old != nil {
		return old
	}
	sh.byID[s.id] = s
	t.n.Add(1)
	return s
}

func (t *table) remove(s *Session) {
	sh := &t.shards[t.shard(s.id)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.byID[s.id] == s {
		delete(sh.byID, s.id)
		t.n.Add(-1)
	}
}

// copyShard appends the sessions of shard i to buf.
func (t *table) copyShard(i int, buf []*Session) []*Session {
	sh := &t.shards[i]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, s := range sh.byID {
		buf = append(buf, s)
	}
	return buf
}

func (t *table) all() []*Session {
	var out []*Session
	for i := range t.shards {
		out = t.copyShard(i, out)
	}
	return out
}
