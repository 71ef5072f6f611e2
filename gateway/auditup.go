package gateway

import (
	"sync/atomic"

	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/audit"
)

// auditUp sends audit records to the control center, beside the audit file, as
// audit.send says. It is there before the link.
type auditUp struct {
	all  bool // also requests and flows that were allowed; their ends go in any case
	link atomic.Pointer[ctlclient.Gateway]
}

// newAuditUp returns nil when nothing is to be sent.
func newAuditUp(send string) *auditUp {
	if send != "ends" && send != "all" {
		return nil
	}
	return &auditUp{all: send == "all"}
}

// Write implements [audit.Sink].
func (a *auditUp) Write(r *audit.Record) {
	l := a.link.Load()
	if l == nil || !a.all && r.Kind == audit.Decision && r.Allowed {
		return
	}
	var buf [1024]byte
	l.Audit(r.AppendJSON(buf[:0]))
}
