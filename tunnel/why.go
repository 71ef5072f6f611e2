package tunnel

import (
	"strings"

	"github.com/yumen-zt/yumen/access"
	"github.com/yumen-zt/yumen/access/policy"
	"github.com/yumen-zt/yumen/internal/reason"
)

// told are the reasons whose policy's data a refused user may read: when to
// come back, or what to do first. What an address list or a path holds stays
// with the operators.
var told = map[reason.Reason]bool{
	reason.PolicyTime: true, reason.PolicyAuthAge: true, reason.PolicyMFA: true, reason.PolicyLevel: true,
	reason.PolicyPosture: true, reason.PolicyMaxConn: true, reason.PolicyTLS: true,
}

// particulars returns what Table 13 says behind the reason, in letters, digits
// and symbols: the policy, and its data where that helps, such as
// "policy POL00000007 1-5 0800-2000 +08".
func (x *flow) particulars(no access.Refusal) string {
	if no.PolicyID == "" {
		return ""
	}
	text := no.PolicyID
	if told[no.Reason] && x.request != nil {
		t := x.t
		trace := t.srv.cfg.Access.Explain(t.session.Facts(), x.request.AppID, policy.Request{Remote: t.remote().Addr().Unmap(), Protocol: t.conn.Protocol})
		for _, s := range trace.Steps {
			for _, p := range s.Policies {
				if strings.HasPrefix(p, no.PolicyID+" ") {
					text = p
				}
			}
		}
	}
	return " (policy " + text + ")"
}
