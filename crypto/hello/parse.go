package hello

import "encoding/binary"

// Extensions that are read (RFC 6066, RFC 8422, RFC 8446, RFC 7301; GM/T 0024
// annex A gives TLCP the same numbers).
const (
	extServerName = 0
	extGroups     = 10
	extSignatures = 13
	extALPN       = 16
	extVersions   = 43
)

// parse reads the body of a ClientHello and reports whether it is whole.
func (h *Hello) parse(b []byte) bool {
	c := cursor{b}
	h.Version = c.u16()
	c.skip(32) // random
	c.vector8()
	suites := cursor{c.vector16()}
	h.Suites = suites.all16()
	c.vector8() // compression methods
	if c.b == nil || len(suites.b) != 0 {
		return false
	}
	if len(c.b) == 0 {
		return true // no extensions
	}
	ext := cursor{c.vector16()}
	if c.b == nil || len(c.b) != 0 {
		return false
	}
	seen := map[uint16]bool{}
	for len(ext.b) > 0 {
		kind := ext.u16()
		body := cursor{ext.vector16()}
		if ext.b == nil || seen[kind] {
			return false
		}
		seen[kind] = true
		if !h.extension(kind, body) {
			return false
		}
	}
	return ext.b != nil
}

func (h *Hello) extension(kind uint16, body cursor) bool {
	switch kind {
	case extServerName:
		list := cursor{body.vector16()}
		for len(list.b) > 0 {
			t := list.u8()
			name := list.vector16()
			if list.b == nil || len(name) > 255 { // no host name is longer
				return false
			}
			if t == 0 && h.ServerName == "" {
				h.ServerName = string(name)
			}
		}
	case extALPN:
		list := cursor{body.vector16()}
		for len(list.b) > 0 {
			name := list.vector8()
			if list.b == nil || len(name) == 0 {
				return false
			}
			h.ALPN = append(h.ALPN, string(name))
		}
	case extVersions:
		list := cursor{body.vector8()}
		h.Versions = list.all16()
	case extGroups:
		list := cursor{body.vector16()}
		h.Groups = list.all16()
	case extSignatures:
		list := cursor{body.vector16()}
		h.Signatures = list.all16()
	}
	return true
}

// cursor takes fields off the front of b; after a short read b is nil and every
// further field is empty.
type cursor struct{ b []byte }

func (c *cursor) skip(n int) []byte {
	if c.b == nil || len(c.b) < n {
		c.b = nil
		return nil
	}
	taken := c.b[:n:n]
	c.b = c.b[n:]
	return taken
}

func (c *cursor) u8() byte {
	if b := c.skip(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.skip(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) vector8() []byte {
	n := int(c.u8())
	return c.skip(n)
}

func (c *cursor) vector16() []byte {
	n := int(c.u16())
	return c.skip(n)
}

// all16 returns the 16-bit values that are left; an odd byte stays.
func (c *cursor) all16() []uint16 {
	if len(c.b) < 2 {
		return nil
	}
	all := make([]uint16, 0, len(c.b)/2)
	for len(c.b) >= 2 {
		all = append(all, c.u16())
	}
	return all
}
