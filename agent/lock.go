package agent

import (
	"errors"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
)

// Lock says that an operator has shut this user or device out.
type Lock struct {
	Since   time.Time `json:"since"`             // when this agent heard of it
	Message string    `json:"message,omitempty"` // the operator's own words
}

// noteLock takes the word of a gateway or the control center that the user or
// the device is locked. It holds until a sign-in, a hello to a gateway or a
// flow succeeds: nobody tells an agent that a lock was taken away.
func (a *Agent) noteLock(message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := Lock{Since: a.cfg.Now(), Message: printable(message)}
	if a.lock != nil {
		l.Since = a.lock.Since
		if l.Message == "" {
			l.Message = a.lock.Message
		}
	}
	a.lock = &l
}

// noteRefusal takes a lock out of a refusal that speaks of the user or the
// device as such: of a message, or of a hello.
func (a *Agent) noteRefusal(err error) {
	var gw *carrier.RefusedError
	var ctl *ctlclient.RefusedError
	switch {
	case errors.As(err, &ctl) && ctl.Reason == reason.Locked:
		a.noteLock(ctl.Message)
	case errors.As(err, &gw) && gw.Reason == reason.Locked:
		a.noteLock("")
	}
}

func (a *Agent) noLock() {
	a.mu.Lock()
	a.lock = nil
	a.mu.Unlock()
}

// lockMessage finds the operator's words in the content of a Table 15 that
// tells of a lock, "" when it is worded in another way.
func lockMessage(content string) string {
	content, _, _ = strings.Cut(content, " | device ") // the other language
	_, detail, ok := strings.Cut(content, "; detail ")
	if !ok {
		return ""
	}
	e, _ := alert.Lookup(alert.LockInForce)
	detail = strings.TrimSuffix(detail, "; "+e.AdviceZH)
	_, message, _ := strings.Cut(detail, ": ") // kind and identifier
	return message
}
