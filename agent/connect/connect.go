// Package connect reads the one request that an HTTP CONNECT proxy serves
// (RFC 9110, clause 9.3.6) and writes its answer. Requests in absolute form
// ("GET http://host/") are refused with a text that says what to do, because
// the agent carries flows and never looks into them.
package connect

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// MaxHead is the greatest number of bytes of a request's head.
const MaxHead = 16 << 10

// Target is the authority of a request: a name or an address, and a port.
type Target struct {
	Name string
	Addr netip.Addr
	Port uint16
}

// RequestError is a request that is not served; Status and Text are the answer.
type RequestError struct {
	Status   int
	EN, ZH   string
	Absolute bool // the request was in absolute form
}

// Error returns the English text.
func (e *RequestError) Error() string { return "connect: " + e.EN }

func bad(en, zh string) error { return &RequestError{Status: 400, EN: en, ZH: zh} }

// Read reads one head from br, exactly up to the blank line, and returns its
// target. Errors that the client should hear of are [*RequestError].
func Read(br *bufio.Reader) (Target, error) {
	left := MaxHead
	first, err := line(br, &left)
	if err != nil {
		return Target{}, err
	}
	method, rest, ok1 := strings.Cut(first, " ")
	authority, version, ok2 := strings.Cut(rest, " ")
	if !ok1 || !ok2 || version != "HTTP/1.1" && version != "HTTP/1.0" {
		return Target{}, bad("malformed request line", "请求行格式错误")
	}
	for {
		l, err := line(br, &left)
		if err != nil {
			return Target{}, err
		}
		if l == "" {
			break
		}
		name, _, ok := strings.Cut(l, ":")
		if !ok || !token(name) {
			return Target{}, bad("malformed header field", "请求头字段格式错误")
		}
		if n := strings.ToLower(name); n == "content-length" || n == "transfer-encoding" {
			if method == "CONNECT" {
				return Target{}, bad("a CONNECT request has no body", "CONNECT 请求不得带有请求体")
			}
		}
	}
	if method != "CONNECT" {
		if strings.Contains(authority, "://") {
			return Target{}, &RequestError{
				Status: 501, Absolute: true,
				EN: "this proxy serves CONNECT only: set it as the proxy for HTTPS, or use SOCKS5 for plain HTTP",
				ZH: "此代理仅支持 CONNECT：请将其设为 HTTPS 代理，明文 HTTP 请使用 SOCKS5 代理",
			}
		}
		return Target{}, &RequestError{Status: 405, EN: "this is a proxy, it serves CONNECT only", ZH: "这是代理端口，仅支持 CONNECT"}
	}
	return parseAuthority(authority)
}

// parseAuthority takes host:port, [v6]:port; the port must stand there.
func parseAuthority(s string) (Target, error) {
	malformed := bad("the target is not host:port", "目标不是 host:port 形式")
	i := strings.LastIndexByte(s, ':')
	if i < 1 {
		return Target{}, malformed
	}
	host, portText := s[:i], s[i+1:]
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || portText[0] == '+' || port == 0 {
		return Target{}, malformed
	}
	t := Target{Port: uint16(port)}
	if in, ok := strings.CutPrefix(host, "["); ok {
		in, ok = strings.CutSuffix(in, "]")
		a, err := netip.ParseAddr(in)
		if !ok || err != nil || !a.Is6() || a.Zone() != "" {
			return Target{}, malformed
		}
		t.Addr = a.Unmap()
		return t, nil
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if !a.Is4() {
			return Target{}, malformed
		}
		t.Addr = a
		return t, nil
	}
	if len(host) > 253 {
		return Target{}, malformed
	}
	for _, c := range []byte(host) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_':
		default:
			return Target{}, malformed
		}
	}
	t.Name = host
	return t, nil
}

// line reads one line that ends in CR LF, without it.
func line(br *bufio.Reader, left *int) (string, error) {
	var b []byte
	for {
		part, err := br.ReadSlice('\n')
		*left -= len(part)
		if *left < 0 {
			return "", &RequestError{Status: 431, EN: "the request's head is too large", ZH: "请求头过大"}
		}
		b = append(b, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			if errors.Is(err, io.EOF) && len(b) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return "", fmt.Errorf("read request: %w", err)
		}
		break
	}
	if len(b) < 2 || b[len(b)-2] != '\r' {
		return "", bad("a line does not end in CR LF", "行未以 CR LF 结尾")
	}
	b = b[:len(b)-2]
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return "", bad("a control character in the head", "请求头中含有控制字符")
		}
	}
	return string(b), nil
}

func token(s string) bool {
	if s == "" {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return true
}

var statusText = map[int]string{
	200: "Connection Established", 400: "Bad Request", 403: "Forbidden", 405: "Method Not Allowed", 429: "Too Many Requests",
	431: "Request Header Fields Too Large", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
}

// WriteReply answers a request. Text, for a status other than 200, is shown to
// the person: English and Chinese, one line each.
func WriteReply(w io.Writer, status int, en, zh string) error {
	word := statusText[status]
	if word == "" {
		status, word = 502, statusText[502]
	}
	if status == 200 {
		_, err := io.WriteString(w, "HTTP/1.1 200 "+word+"\r\n\r\n")
		return err
	}
	text := en + "\n" + zh + "\n"
	_, err := fmt.Fprintf(w, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", status, word, len(text), text)
	return err
}
