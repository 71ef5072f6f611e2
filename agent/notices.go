package agent

import (
	"slices"
	"sync"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/wire"
)

// maxNotices is how many notices an agent remembers; older ones make room and
// are counted.
const maxNotices = 64

// Notice is something that the person who runs the agent should see: a refusal
// or an alert of the gateway (Table 15, §8.4).
type Notice struct {
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind"` // "refused", "gateway", "agent"
	Type    string    `json:"type,omitempty"`
	Level   int       `json:"level"`
	AppID   string    `json:"appId,omitempty"`
	Target  string    `json:"target,omitempty"`
	Reason  string    `json:"reason,omitempty"`  // code such as YM-403
	Content string    `json:"content,omitempty"` // Table 15: as it came
	Words
}

// notices is a ring of the newest notices. It is safe for concurrent use.
type notices struct {
	mu      sync.Mutex
	ring    []Notice // guarded by mu; oldest first
	dropped uint64   // guarded by mu
}

func (n *notices) add(x Notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.ring) == maxNotices {
		n.ring = slices.Delete(n.ring, 0, 1)
		n.dropped++
	}
	n.ring = append(n.ring, x)
}

// all returns the notices, the newest first.
func (n *notices) all() []Notice {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := slices.Clone(n.ring)
	slices.Reverse(out)
	return out
}

// about returns the newest notice about an application.
func (n *notices) about(appID string) (Notice, bool) {
	for _, x := range n.all() {
		if x.AppID == appID {
			return x, true
		}
	}
	return Notice{}, false
}

// fromGateway words Table 15: the catalogue's sentence in both languages, where
// the type is known, and the gateway's own content as it came.
func fromGateway(m *wire.Notice, now time.Time) Notice {
	n := Notice{
		Time: now, Kind: "gateway", Type: printable(m.ExceptionAlertType), Level: m.ExceptionAlertLevel,
		Content: printable(m.ExceptionAlertContent),
	}
	if at, err := wire.ParseTime(m.Timestamp); err == nil {
		n.Time = at
	}
	if e, ok := alert.Lookup(alert.Code(m.ExceptionAlertType)); ok {
		n.Words = Words{EN: e.EN + ". " + e.AdviceEN, ZH: e.ZH + "。" + e.AdviceZH}
	} else {
		n.Words = Words{EN: n.Content, ZH: n.Content}
	}
	return n
}
