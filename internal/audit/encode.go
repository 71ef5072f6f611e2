package audit

import (
	"bytes"
	"strconv"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// appendLine appends r as one line of JSON. It is written by hand because a
// record is made for every decision: no allocation, and text from a peer is
// escaped and capped on the way (S33). The field names are those of Record's
// tags; a test holds the two together.
func appendLine(b []byte, r *Record) []byte {
	b = append(b, `{"time":"`...)
	b = appendTime(b, r.Time)
	b = append(b, `","kind":`...)
	b = appendText(b, string(r.Kind))
	b = appendField(b, "gateway_id", r.GatewayID)
	b = appendField(b, "user_id", r.UserID)
	b = appendField(b, "device_id", r.DeviceID)
	b = appendField(b, "agent_id", r.AgentID)
	b = appendField(b, "session_id", r.SessionID)
	b = appendField(b, "uid", r.UID)
	b = appendField(b, "app_id", r.AppID)
	b = appendField(b, "object", r.Object)
	b = appendField(b, "carrier", r.Carrier)
	b = appendField(b, "flow_id", r.FlowID)
	b = appendField(b, "request_id", r.RequestID)
	b = appendField(b, "method", r.Method)
	b = appendField(b, "path", r.Path)
	b = appendField(b, "protocol", r.Protocol)
	b = appendField(b, "suite", r.Suite)
	b = append(b, `,"remote_addr":`...)
	b = appendText(b, r.Remote)
	b = appendField(b, "upstream", r.Upstream)
	b = appendField(b, "policy_id", r.PolicyID)
	b = append(b, `,"allowed":`...)
	b = strconv.AppendBool(b, r.Allowed)
	b = append(b, `,"result":`...)
	b = appendText(b, r.Result)
	b = append(b, `,"reason_code":`...)
	b = strconv.AppendUint(b, uint64(r.Code), 10)
	b = appendNumber(b, "bytes_in", r.BytesIn)
	b = appendNumber(b, "bytes_out", r.BytesOut)
	b = appendNumber(b, "duration_ns", int64(r.Duration))
	b = appendField(b, "detail", r.Detail)
	return append(b, "}\n"...)
}

// second is the text of one.
type second struct {
	unix int64
	text string
}

var lastSecond atomic.Pointer[second]

// appendTime appends t as time.RFC3339Nano does in UTC.
func appendTime(b []byte, t time.Time) []byte {
	s := lastSecond.Load()
	if s == nil || s.unix != t.Unix() {
		s = &second{t.Unix(), t.UTC().Format("2006-01-02T15:04:05")}
		lastSecond.Store(s)
	}
	b = append(b, s.text...)
	if n := t.Nanosecond(); n != 0 {
		var digits [10]byte
		for i := 9; i > 0; i-- {
			digits[i] = byte('0' + n%10)
			n /= 10
		}
		digits[0] = '.'
		b = append(b, bytes.TrimRight(digits[:], "0")...)
	}
	return append(b, 'Z')
}

// plain reports whether s needs no escape, eight bytes at a look.
func plain(s string) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	for len(s) >= 8 {
		w := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
			uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		quote, slash := w^'"'*ones, w^'\\'*ones
		// Below ' ', of 0x7f or more, a quote or a backslash; perhaps more than those.
		if ((w-' '*ones)|(w+ones)|w|(quote-ones)|(slash-ones))&tops != 0 && !slowPlain(s[:8]) {
			return false
		}
		s = s[8:]
	}
	return slowPlain(s)
}

func slowPlain(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// AppendJSON appends r as a JSON object, as the file has it.
func (r *Record) AppendJSON(b []byte) []byte {
	b = appendLine(b, r)
	return b[:len(b)-1]
}

func appendField(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":`...)
	return appendText(b, value)
}

func appendNumber(b []byte, name string, value int64) []byte {
	if value == 0 {
		return b
	}
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":`...)
	return strconv.AppendInt(b, value, 10)
}

// appendText appends s as a JSON string of at most MaxField bytes of text. What
// a terminal or a reader must not see as it is becomes \uXXXX, and bytes that
// are no UTF-8 become U+FFFD, escaped as well.
func appendText(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	cut := len(s) > MaxField
	if cut {
		end := MaxField - len(cutMark)
		for end > 0 && !utf8.RuneStart(s[end]) {
			end--
		}
		s = s[:end]
	}
	b = append(b, '"')
	if plain(s) {
		b = append(b, s...)
		if cut {
			b = append(b, cutMark...)
		}
		return append(b, '"')
	}
	from := 0
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			i++
			if c >= ' ' && c != '"' && c != '\\' && c != 0x7f {
				continue
			}
			b = append(b, s[from:i-1]...)
			from = i
			if c == '"' || c == '\\' {
				b = append(b, '\\', c)
			} else {
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if !unsafeRune(r) {
			i += size
			continue
		}
		b = append(b, s[from:i]...)
		i += size
		from = i
		if r > 0xffff { // a surrogate pair, as JSON has it
			r -= 0x10000
			b = appendEscape(b, 0xd800+r>>10)
			r = 0xdc00 + r&0x3ff
		}
		b = appendEscape(b, r)
	}
	b = append(b, s[from:]...)
	if cut {
		b = append(b, cutMark...)
	}
	return append(b, '"')
}

func appendEscape(b []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	return append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}
