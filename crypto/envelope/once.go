package envelope

import (
	"container/list"
	"errors"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
)

// OnceConfig bounds a [Once]. The zero value of a field selects its default.
type OnceConfig struct {
	Window       time.Duration    // skew window of the link; entries live twice as long; default DefaultSkew
	MaxEntries   int              // message ids in all; default 65536
	MaxPerSender int              // message ids of one sender; default a quarter of MaxEntries
	MaxBytes     int              // bytes of replies; default 16 MiB
	Now          func() time.Time // default time.Now
}

// Once gives each message of a sender its effect once (M22): a repeat gets the
// first reply. An entry lives for twice the skew window, which is the longest
// between the first and the last moment at which [Receiver.Open] takes the same
// envelope.
//
// Both bounds fail towards no second effect. When all entries, or all of one
// sender's, are taken, further messages are refused with Overload. When the
// bytes are used up the oldest replies are forgotten but their ids are not:
// their repeats are refused. Once may be used by several goroutines at once.
type Once struct {
	cfg OnceConfig

	mu      sync.Mutex
	entries map[onceKey]*list.Element // of order; guarded by mu
	senders map[string]int            // entries of each sender; guarded by mu
	order   *list.List                // of *onceEntry, oldest first; guarded by mu
	stats   OnceStats                 // guarded by mu
}

type onceKey struct{ sender, msgID string }

type onceEntry struct {
	key    onceKey
	digest [32]byte
	made   time.Time
	done   chan struct{} // closed when reply and state are final but for forgetting

	// Guarded by Once.mu.
	state onceState
	reply []byte
}

type onceState uint8

const (
	running   onceState = iota
	answered            // reply is what f returned
	forgotten           // f returned, the reply is gone
	failed              // f panicked; the entry is no longer in the map
)

// OnceStats are the counts of a [Once].
type OnceStats struct {
	Entries, Bytes int    // now
	Repeats        uint64 // repeats that got the first reply
	Conflicts      uint64 // ids used with another digest
	Refused        uint64 // first messages refused because a bound was reached
	Forgotten      uint64 // replies dropped to keep the bound of bytes
}

// NewOnce returns an empty Once.
func NewOnce(cfg OnceConfig) *Once {
	if cfg.Window <= 0 {
		cfg.Window = DefaultSkew
	}
	if cfg.MaxEntries <= 0 {
		cfg.MaxEntries = 1 << 16
	}
	if cfg.MaxPerSender <= 0 {
		cfg.MaxPerSender = max(1, cfg.MaxEntries/4)
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = 16 << 20
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Once{cfg: cfg, entries: make(map[onceKey]*list.Element), senders: make(map[string]int), order: list.New()}
}

// Do calls f for the first message msgID of sender and keeps its reply; a
// repeat with the same digest gets that reply and repeated = true, after
// waiting for a first call that is still running. Another digest under the
// same id is a [*RejectedError] with MessageConflict.
//
// The sender must be authenticated. f should return the body of the reply, to
// be sealed anew each time, because an envelope's own time grows old. The reply
// must not be changed. When f panics, the panic goes on to Do's caller, those
// who wait get InternalError, and the next repeat calls f again.
func (o *Once) Do(sender, msgID string, digest [32]byte, f func() []byte) (reply []byte, repeated bool, err error) {
	if !printable(sender) || !printable(msgID) {
		return nil, false, reject(reason.MessageInvalid, errors.New("sender or msgId is not 1 to 64 printable ASCII characters"))
	}
	key := onceKey{sender, msgID}
	o.mu.Lock()
	o.expire()
	if el, ok := o.entries[key]; ok {
		e := el.Value.(*onceEntry)
		if e.digest != digest {
			o.stats.Conflicts++
			o.mu.Unlock()
			return nil, false, reject(reason.MessageConflict, nil)
		}
		o.mu.Unlock()
		<-e.done
		return o.repeat(e)
	}
	if len(o.entries) >= o.cfg.MaxEntries || o.senders[sender] >= o.cfg.MaxPerSender {
		o.stats.Refused++
		o.mu.Unlock()
		return nil, false, reject(reason.Overload, errors.New("too many message ids are remembered"))
	}
	e := &onceEntry{key: key, digest: digest, made: o.cfg.Now(), done: make(chan struct{})}
	o.entries[key] = o.order.PushBack(e)
	o.senders[sender]++
	o.mu.Unlock()

	finished := false
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if finished {
			o.keep(e, reply)
		} else { // f panicked, or ended its goroutine
			e.state = failed
			o.remove(o.entries[key])
		}
		close(e.done)
	}()
	reply = f()
	finished = true
	return reply, false, nil
}

// repeat returns the result of a call that has ended.
func (o *Once) repeat(e *onceEntry) ([]byte, bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch e.state {
	case answered:
		o.stats.Repeats++
		return e.reply, true, nil
	case forgotten:
		return nil, true, reject(reason.Overload, errors.New("the reply is no longer remembered"))
	default:
		return nil, false, reject(reason.InternalError, errors.New("the first call failed"))
	}
}

// keep stores a reply and forgets the oldest ones until all fit. The caller
// holds mu.
func (o *Once) keep(e *onceEntry, reply []byte) {
	e.state, e.reply = answered, reply
	o.stats.Bytes += len(reply)
	for el := o.order.Front(); el != nil && o.stats.Bytes > o.cfg.MaxBytes; el = el.Next() {
		if old := el.Value.(*onceEntry); old.state == answered && len(old.reply) > 0 {
			o.stats.Bytes -= len(old.reply)
			o.stats.Forgotten++
			old.state, old.reply = forgotten, nil
		}
	}
}

// expire removes the entries that no accepted message can repeat. A call that
// still runs stops it: its entry must stay. The caller holds mu.
func (o *Once) expire() {
	now := o.cfg.Now()
	for el := o.order.Front(); el != nil; el = o.order.Front() {
		e := el.Value.(*onceEntry)
		if e.state == running || now.Sub(e.made) <= 2*o.cfg.Window {
			return
		}
		o.remove(el)
	}
}

// remove takes an entry out. The caller holds mu.
func (o *Once) remove(el *list.Element) {
	e := o.order.Remove(el).(*onceEntry)
	o.stats.Bytes -= len(e.reply)
	delete(o.entries, e.key)
	if o.senders[e.key.sender]--; o.senders[e.key.sender] == 0 {
		delete(o.senders, e.key.sender)
	}
}

// Stats returns the counts.
func (o *Once) Stats() OnceStats {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.stats
	s.Entries = len(o.entries)
	return s
}
