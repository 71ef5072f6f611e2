package policy

import (
	"errors"
	"fmt"
	"strings"
)

// route is the data of app: methods and a path, such as "GET /api/*" or
// "GET,HEAD /static/*.css". The method * is any. A * in the path stands for any
// characters but a slash; as the last character behind a slash it stands for
// everything below. Paths compare exactly, on the canonical path. A TCP or UDP
// flow has neither method nor path and fails.
type route struct {
	methods []string // nil: any
	path    string   // without the final * of a prefix
	below   bool     // path is a prefix
	glob    bool     // path holds a *
}

func parseRoute(s string) (grammar, error) {
	f := strings.Fields(s)
	if len(f) != 2 {
		return nil, errors.New("want methods and a path, such as GET /api/*")
	}
	r := &route{path: f[1]}
	if f[0] != "*" {
		for _, m := range list(f[0]) {
			if m == "" || strings.ContainsFunc(m, func(c rune) bool { return (c < 'A' || c > 'Z') && c != '-' }) {
				return nil, fmt.Errorf("%q is no method (upper case, or * for any)", m)
			}
			r.methods = append(r.methods, m)
		}
	}
	if !strings.HasPrefix(r.path, "/") {
		return nil, errors.New("the path must start with a slash")
	}
	if strings.ContainsAny(r.path, "?#%\\") || strings.Contains(r.path, "//") || strings.Contains(r.path+"/", "/./") || strings.Contains(r.path+"/", "/../") {
		return nil, errors.New("the path is not canonical (no query, escapes, empty or dot segments)")
	}
	if strings.HasSuffix(r.path, "/*") {
		r.path, r.below = strings.TrimSuffix(r.path, "*"), true
	}
	r.glob = strings.Contains(r.path, "*")
	return r, nil
}

func (r *route) holds(method, path string) bool {
	if method == "" || path == "" {
		return false
	}
	if r.methods != nil {
		found := false
		for _, m := range r.methods {
			found = found || m == method
		}
		if !found {
			return false
		}
	}
	switch {
	case r.glob:
		return globMatch(r.path, path, r.below)
	case r.below:
		return strings.HasPrefix(path, r.path)
	}
	return path == r.path
}

// globMatch matches path against pattern, in which * is any run of characters
// but a slash. With below the pattern need only match a prefix that ends in a
// slash. It takes time of len(pattern) × len(path) at most: only the latest *
// is ever tried again, except that a prefix may end at any slash.
func globMatch(pattern, path string, below bool) bool {
	p, s := 0, 0
	star, mark := -1, 0
	for {
		switch {
		case p == len(pattern) && (below || s == len(path)):
			return true
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, s
			p++
		case p < len(pattern) && s < len(path) && pattern[p] == path[s]:
			p++
			s++
		case star >= 0 && mark < len(path) && path[mark] != '/':
			mark++
			p, s = star+1, mark
		default:
			return false
		}
	}
}

func (r *route) String() string {
	m := "*"
	if r.methods != nil {
		m = strings.Join(r.methods, ",")
	}
	if r.below {
		return m + " " + r.path + "*"
	}
	return m + " " + r.path
}
