package login

import (
	"net/url"
	"strconv"
	"strings"
	"unicode"
)

// safeReturn returns target when it is a path on the same host, and "/"
// otherwise. Whatever a browser could read as another host (//x, /\x, a scheme,
// a tab or a line break that it would strip) is not one.
func safeReturn(target string) string {
	if len(target) == 0 || len(target) > maxReturn || target[0] != '/' {
		return "/"
	}
	for _, c := range target {
		if c == '\\' || unicode.IsControl(c) || unicode.IsSpace(c) || c > unicode.MaxASCII {
			return "/"
		}
	}
	if strings.HasPrefix(target, "//") {
		return "/"
	}
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" || strings.HasPrefix(u.Path, "//") || strings.Contains(u.Path, "\\") {
		return "/"
	}
	if strings.HasPrefix(u.Path, Prefix) {
		return "/" // never back into the login itself
	}
	u.Fragment = ""
	return u.RequestURI()
}

const maxReturn = 2048 // bytes

func withQuery(base string, values map[string]string) string {
	u, err := url.Parse(base)
	if err != nil {
		return ""
	}
	q := u.Query()
	for k, v := range values {
		q.Set(k, v)
	}
	u.RawQuery = q.Encode()
	return u.String()
}

func itoa(n int) string { return strconv.Itoa(n) }
