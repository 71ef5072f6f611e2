package tlcp

import (
	"container/list"
	"sync"
)

// SessionCache keeps sessions between connections. It may be called by several
// goroutines at once. What it returns must be what was put in: a session holds
// a master secret, so a shared store must protect it ([Session.MarshalBinary]).
type SessionCache interface {
	// Get returns the session of key, or nil.
	Get(key string) *Session
	// Put keeps s under key; a nil s forgets it.
	Put(key string, s *Session)
}

// NewLRUSessionCache returns a cache in memory that keeps the capacity most
// recently used sessions; capacity < 1 selects 1024.
func NewLRUSessionCache(capacity int) SessionCache {
	if capacity < 1 {
		capacity = 1024
	}
	return &lruCache{capacity: capacity, order: list.New(), byKey: make(map[string]*list.Element)}
}

type lruCache struct {
	capacity int

	mu    sync.Mutex
	order *list.List               // of *lruEntry, newest first; guarded by mu
	byKey map[string]*list.Element // guarded by mu
}

type lruEntry struct {
	key     string
	session *Session
}

func (c *lruCache) Get(key string) *Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[key]
	if !ok {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*lruEntry).session
}

func (c *lruCache) Put(key string, s *Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[key]
	switch {
	case ok && s == nil:
		c.order.Remove(e)
		delete(c.byKey, key)
	case ok:
		e.Value.(*lruEntry).session = s
		c.order.MoveToFront(e)
	case s != nil:
		c.byKey[key] = c.order.PushFront(&lruEntry{key, s})
		if c.order.Len() > c.capacity {
			last := c.order.Back()
			c.order.Remove(last)
			delete(c.byKey, last.Value.(*lruEntry).key)
		}
	}
}
