package proxy

import (
	"sync"
	"time"

	"github.com/yumen-zt/yumen/internal/audit"
)

// entries are used again: whoever logs keeps none.
var entries = sync.Pool{New: func() any { return new(audit.Access) }}

// log writes x to the access log.
func (p *Proxy) log(x *Exchange, took time.Duration) {
	a := entries.Get().(*audit.Access)
	*a = audit.Access{
		Time: x.Start, RequestID: x.ID, UserID: x.Facts.UserID, Remote: x.ClientText(), Method: x.Method, Host: x.Host, Path: x.Path,
		Carrier: string(x.Carrier), Status: x.Status, Code: x.Why, BytesIn: x.BytesIn.Load(), BytesOut: x.BytesOut.Load(),
		Duration: took, UserAgent: x.Header.Get("User-Agent"),
	}
	if x.App != nil {
		a.AppID = x.App.ID
	}
	p.cfg.Log(a)
	*a = audit.Access{}
	entries.Put(a)
}
