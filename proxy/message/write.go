package message

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/yumen-zt/yumen/proxy/exchange"
)

// AppendField appends a field line. Control characters in the value become
// spaces: a value never ends its line.
func AppendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	from := len(b)
	b = append(b, value...)
	if exchange.HasControl(value) {
		for i, c := range b[from:] {
			if c < ' ' && c != '\t' || c == 0x7f {
				b[from+i] = ' '
			}
		}
	}
	return append(b, "\r\n"...)
}

// AppendFields appends a line for each field of h.
func AppendFields(b []byte, h exchange.Header) []byte {
	for i := range h {
		b = AppendField(b, h[i].Name, h[i].Value)
	}
	return b
}

// AppendStatusLine appends the first line of an answer, always of HTTP/1.1
// (RFC 9110 §2.5).
func AppendStatusLine(b []byte, status int) []byte {
	if status == http.StatusOK {
		return append(b, "HTTP/1.1 200 OK\r\n"...)
	}
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	return append(b, "\r\n"...)
}

// AppendLength appends Content-Length.
func AppendLength(b []byte, n int64) []byte {
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, "\r\n"...)
}

// AppendChunk appends p as one chunk. An empty p appends nothing: that would be
// the last one.
func AppendChunk(b, p []byte) []byte {
	if len(p) == 0 {
		return b
	}
	b = strconv.AppendInt(b, int64(len(p)), 16)
	b = append(b, "\r\n"...)
	b = append(b, p...)
	return append(b, "\r\n"...)
}

// AppendLastChunk appends the last chunk with its trailer.
func AppendLastChunk(b []byte, trailer exchange.Header) []byte {
	b = append(b, "0\r\n"...)
	b = AppendFields(b, trailer)
	return append(b, "\r\n"...)
}

// date is the text of one second.
type date struct {
	second int64
	text   string
}

var dates atomic.Pointer[date]

// AppendDate appends Date (RFC 9110 §6.6.1).
func AppendDate(b []byte, now time.Time) []byte { return AppendField(b, "Date", Date(now)) }

// Date returns the value of Date at now.
func Date(now time.Time) string {
	d := dates.Load()
	if s := now.Unix(); d == nil || d.second != s {
		d = &date{s, now.UTC().Format(http.TimeFormat)}
		dates.Store(d)
	}
	return d.text
}
