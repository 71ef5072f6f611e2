package policy

import "github.com/yumen-zt/yumen/wire"

// rows is the table of grants: chunks of fixed size without pointers inside.
// A table is shared by a snapshot and the builder of its successor; a builder
// copies a chunk before it writes to it the first time, so a delta of one row
// costs one chunk and not the whole list.
type rows struct {
	chunks []*rowChunk
	n      uint32 // rows used, dead ones too
}

const chunkRows = 256

type rowChunk struct {
	rows  [chunkRows]grant    // first, so that each fills a cache line
	sums  [chunkRows]wire.Sum // of the rows, for the state hash; apart, for decisions do not read them
	owner *Builder            // who may write; a finished builder writes no more
}

// grant is a row of Table 7. It fills one cache line.
type grant struct {
	pair     pair
	mac      mac
	expires  seconds
	authTime seconds
	set      uint32 // of applications
	level    int16
	factors  Factors
	posture  Score
	risk     Score
	flags    uint8
	_        [5]byte
}

// seconds is a time of the standard, whose resolution is a second, in four
// bytes: seconds since 1970, rounded down. 0 is unset.
type seconds uint32

const noEnd = ^seconds(0)

func secondsOf(n int64) seconds {
	switch {
	case n == never:
		return noEnd
	case n <= 0:
		return 0
	}
	return seconds(min(n/1e9, int64(noEnd)))
}

// nanos returns s as the rest of the package counts.
func (s seconds) nanos() int64 {
	switch s {
	case 0:
		return unset
	case noEnd:
		return never
	}
	return int64(s) * 1e9
}

// The flags of a row.
const (
	rowDead     uint8 = 1 << iota // removed
	rowConflict                   // another row of the pair differs: grants nothing
	rowTokenBad                   // another row has the token, too: the token opens nothing
	rowBrowser                    // of the browser device: never found by token
)

func (t *rows) at(i uint32) *grant { return &t.chunks[i/chunkRows].rows[i%chunkRows] }

// edit returns row i for writing by b.
func (t *rows) edit(b *Builder, i uint32) *grant {
	c := t.chunks[i/chunkRows]
	if c.owner != b {
		d := *c
		d.owner = b
		c = &d
		t.chunks[i/chunkRows] = c
	}
	return &c.rows[i%chunkRows]
}

// sum returns where the sum of row i is kept. For writing, edit comes first.
func (t *rows) sum(i uint32) *wire.Sum { return &t.chunks[i/chunkRows].sums[i%chunkRows] }

// add appends a row for writing by b.
func (t *rows) add(b *Builder) (uint32, *grant) {
	if t.n%chunkRows == 0 {
		t.chunks = append(t.chunks, &rowChunk{owner: b})
	}
	t.n++
	return t.n - 1, t.edit(b, t.n-1)
}

// index finds rows by a hash: open addressing with linear probing, in pages
// that are copied on write like the chunks of rows. At most half of the slots
// are used. Slots hold row+1, 0 when they never held one.
type index struct {
	pages []*indexPage
	used  uint32 // slots that are not 0
}

const pageSlots = 1024

const slotDead = ^uint32(0)

type indexPage struct {
	owner *Builder
	slots [pageSlots]uint32
}

func newIndex(b *Builder, n int) index {
	pages := 1
	for pages*pageSlots < 2*n {
		pages *= 2
	}
	x := index{pages: make([]*indexPage, pages)}
	arena := make([]indexPage, pages)
	for i := range arena {
		arena[i].owner = b
		x.pages[i] = &arena[i]
	}
	return x
}

func (x *index) mask() uint32 { return uint32(len(x.pages))*pageSlots - 1 }

// slot returns the content of slot i.
func (x *index) slot(i uint32) uint32 { return x.pages[i/pageSlots].slots[i%pageSlots] }

func (x *index) set(b *Builder, i, v uint32) {
	p := x.pages[i/pageSlots]
	if p.owner != b {
		q := *p
		q.owner = b
		p = &q
		x.pages[i/pageSlots] = p
	}
	p.slots[i%pageSlots] = v
}

// full reports whether one more entry needs a larger table.
func (x *index) full() bool { return 2*(x.used+1) > x.mask()+1 }

func (x *index) insert(b *Builder, hash uint64, row uint32) {
	m := x.mask()
	i := uint32(hash) & m
	for ; x.slot(i) != 0; i = (i + 1) & m {
	}
	x.set(b, i, row+1)
	x.used++
}

// remove takes row out; the slot stays used until the table is made anew.
func (x *index) remove(b *Builder, hash uint64, row uint32) {
	m := x.mask()
	for i := uint32(hash) & m; ; i = (i + 1) & m {
		switch x.slot(i) {
		case 0:
			return
		case row + 1:
			x.set(b, i, slotDead)
			return
		}
	}
}

// findPair returns the row of p.
func (t *rows) findPair(x *index, hash uint64, p *pair) (uint32, *grant) {
	m := x.mask()
	for i := uint32(hash) & m; ; i = (i + 1) & m {
		switch v := x.slot(i); v {
		case 0:
			return 0, nil
		case slotDead:
		default:
			if g := t.at(v - 1); g.pair == *p {
				return v - 1, g
			}
		}
	}
}

// findToken returns the row of the token m.
func (t *rows) findToken(x *index, k *mac) (uint32, *grant) {
	m := x.mask()
	for i := uint32(k.hash()) & m; ; i = (i + 1) & m {
		switch v := x.slot(i); v {
		case 0:
			return 0, nil
		case slotDead:
		default:
			if g := t.at(v - 1); g.mac == *k {
				return v - 1, g
			}
		}
	}
}
