package passwd

import (
	"sync"
	"time"
)

// LimiterConfig is what a [Limiter] needs; every field is required.
type LimiterConfig struct {
	Attempts int           // failures within Window that lock a key
	Window   time.Duration //
	Duration time.Duration // how long a lock lasts
	Now      func() time.Time
}

// Limiter counts failures by key (a user, an address) and locks a key that has
// too many (M168). It holds a bounded number of keys: when there are more, the
// oldest that are not locked are forgotten first. It is safe for concurrent use.
type Limiter struct {
	cfg LimiterConfig
	mu  sync.Mutex
	m   map[string]*failures // guarded by mu; at most maxKeys
}

type failures struct {
	count int
	first time.Time
	until time.Time // locked
}

const maxKeys = 1 << 16

// NewLimiter returns a limiter without failures.
func NewLimiter(cfg LimiterConfig) *Limiter {
	return &Limiter{cfg: cfg, m: map[string]*failures{}}
}

// Begin reports whether one more attempt for every key is permitted, and
// counts it as a failure until [Limiter.Succeed] says otherwise: attempts that
// run at the same time cannot all slip through before the first has failed.
func (l *Limiter) Begin(keys ...string) bool {
	now := l.cfg.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range keys {
		if f := l.m[k]; f != nil && now.Before(f.until) {
			return false
		}
	}
	for _, k := range keys {
		f := l.m[k]
		if f == nil || now.Sub(f.first) > l.cfg.Window || !f.until.IsZero() {
			if f == nil && len(l.m) >= maxKeys {
				l.shrink(now)
			}
			f = &failures{first: now}
			l.m[k] = f
		}
		if f.count++; f.count >= l.cfg.Attempts {
			f.until = now.Add(l.cfg.Duration)
		}
	}
	return true
}

// Succeed takes back the attempt that Begin counted for key: it was no failure.
// Earlier failures stay; see [Limiter.Forget].
func (l *Limiter) Succeed(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.m[key]
	if f == nil {
		return
	}
	if f.count--; f.count <= 0 {
		delete(l.m, key)
	} else if f.count < l.cfg.Attempts {
		f.until = time.Time{}
	}
}

// Locked reports whether key is locked, and until when.
func (l *Limiter) Locked(key string) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.m[key]; f != nil && l.cfg.Now().Before(f.until) {
		return f.until, true
	}
	return time.Time{}, false
}

// Forget drops the failures of key: the person knows the password, or an
// operator unlocks.
func (l *Limiter) Forget(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.m, key)
}

// shrink makes room; mu is held.
func (l *Limiter) shrink(now time.Time) {
	for k, f := range l.m {
		if !now.Before(f.until) && now.Sub(f.first) > l.cfg.Window {
			delete(l.m, k)
		}
	}
	for k, f := range l.m {
		if len(l.m) < maxKeys*3/4 {
			return
		}
		if !now.Before(f.until) {
			delete(l.m, k)
		}
	}
}
