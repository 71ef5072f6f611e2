package agent

import (
	"cmp"
	"errors"
	"regexp"
	"strings"

	"github.com/yumen-zt/yumen/ctlclient"
	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/carrier"
)

// Words is a text for the person at the keyboard, in both languages.
type Words struct {
	EN string `json:"en"`
	ZH string `json:"zh"`
}

// String returns both, for a terminal.
func (w Words) String() string { return w.EN + "\n" + w.ZH }

var resultForm = regexp.MustCompile(`^(YM-[0-9]{3}) [A-Z0-9_]+(?:: (.*))?$`)

// Explain turns the result of a reply (Tables 5, 13 and 18) into clear words:
// the catalogue's sentence in each language, the particulars as they came, and
// what to do next. A result that is not ours is shown as it is.
func Explain(result string) (reason.Reason, Words) {
	result = printable(result)
	m := resultForm.FindStringSubmatch(result)
	if m == nil {
		if result == "" {
			return reason.OK, Words{EN: "refused without a reason", ZH: "被拒绝，未说明原因"}
		}
		return reason.OK, Words{EN: result, ZH: "被拒绝：" + result}
	}
	r, err := reason.Parse(m[1])
	if err != nil {
		return reason.OK, Words{EN: result, ZH: "被拒绝：" + result}
	}
	detail := strings.TrimLeft(strings.TrimPrefix(m[2], r.Text(reason.English)), " ;:,")
	return r, sentence(r, detail)
}

// sentence words r with a detail in English, which may be empty.
func sentence(r reason.Reason, detail string) Words {
	detail = strings.TrimSuffix(strings.TrimPrefix(detail, "("), ")")
	en, zh := "not allowed: ", "不允许："
	if !denial(r) {
		en, zh = "failed: ", "失败："
	}
	text := Words{EN: r.Text(reason.English), ZH: r.Text(reason.Chinese)}
	if id, data := policyWords(detail); r == reason.PolicyTime {
		if hours, ok := hoursWords(data); ok {
			text, detail = hours, "policy "+id
		}
	}
	w := Words{EN: en + text.EN, ZH: zh + text.ZH}
	if detail != "" {
		w.EN += " (" + detail + ")"
		w.ZH += "（" + strings.ReplaceAll(detail, "policy ", "策略 ") + "）"
	}
	w.EN += " [" + r.Code() + "]"
	w.ZH += " [" + r.Code() + "]"
	if en, zh := r.Advice(reason.English), r.Advice(reason.Chinese); en != "" {
		w.EN += ". " + en
		w.ZH += "。" + zh
	}
	return w
}

// denial reports whether r is a decision, not a fault on the way.
func denial(r reason.Reason) bool {
	return r >= 200 && r < 500 || r == reason.DestinationRule || r == reason.LocalUser || r == reason.AppUnknown
}

// explainError finds the refusal in err, by whichever end it was made.
func explainError(err error) (reason.Reason, Words) {
	var gw *carrier.RefusedError
	var ctl *ctlclient.RefusedError
	var own *Refusal
	var name *nameError
	switch {
	case errors.As(err, &own):
		return own.Reason, sentence(own.Reason, own.Detail)
	case errors.As(err, &gw):
		if gw.Result == "" {
			return gw.Reason, sentence(gw.Reason, "")
		}
		r, w := Explain(gw.Result)
		return cmp.Or(r, gw.Reason), w
	case errors.As(err, &ctl):
		r, w := Explain(ctl.Result)
		if said := printable(ctl.Message); said != "" { // the operator's own words
			w.EN += " “" + said + "”"
			w.ZH += "“" + said + "”"
		}
		return cmp.Or(r, ctl.Reason), w
	case errors.As(err, &name):
		return reason.MessageInvalid, name.words()
	case errors.Is(err, ctlclient.ErrUnreachable):
		return reason.UpstreamUnreachable, Words{
			EN: "the control center cannot be reached; check the network and try again",
			ZH: "无法连接控制中心，请检查网络后重试",
		}
	case errors.Is(err, ctlclient.ErrDown): // it has answered, and this is no fault of the network
		detail := printable(err.Error())
		return reason.UpstreamBadResponse, Words{
			EN: "the control center answered, but not with what is needed: " + detail + "; try again, then tell your administrator",
			ZH: "控制中心有应答，但无法完成请求：" + detail + "；请重试，仍失败时请告知管理员",
		}
	}
	return reason.InternalError, Words{EN: err.Error(), ZH: "故障：" + err.Error()}
}

// printable takes control characters out of a text that a peer chose, so that
// it can neither break a log line nor command a terminal, and bounds it.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == '\uFFFD' {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 500 {
		s = string(r[:500]) + "…"
	}
	return s
}

// Refusal says that the agent itself refused.
type Refusal struct {
	Reason reason.Reason
	Detail string // English; no secret
}

// Error returns the reason and the detail.
func (r *Refusal) Error() string {
	if r.Detail == "" {
		return r.Reason.Text(reason.English)
	}
	return r.Reason.Text(reason.English) + ": " + r.Detail
}
