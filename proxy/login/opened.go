package login

import (
	"hash/maphash"
	"strings"
	"sync/atomic"
)

// opened remembers what sealed cookies hold: a browser sends the same one with
// each request. It says nothing of their validity, which is judged each time.
// Whoever finds his place taken by another opens the seal again.
type opened struct {
	places [1024]atomic.Pointer[openedCookie]
}

type openedCookie struct {
	purpose    purpose
	host, text string
	session    session
}

var openedSeed = maphash.MakeSeed()

func (o *opened) place(text string) *atomic.Pointer[openedCookie] {
	return &o.places[maphash.String(openedSeed, text)%uint64(len(o.places))]
}

func (o *opened) get(p purpose, host, text string) (session, bool) {
	c := o.place(text).Load()
	if c == nil || c.text != text || c.host != host || c.purpose != p {
		return session{}, false
	}
	return c.session, true
}

// put takes a text whose seal was good, so a stranger fills no place.
func (o *opened) put(p purpose, host, text string, s session) {
	o.place(text).Store(&openedCookie{p, strings.Clone(host), strings.Clone(text), s})
}
