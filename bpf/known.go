package bpf

import (
	"math/bits"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// words64 is a map's memory, shared with the program.
type words64 struct{ b []byte }

func mapWords(m *ebpf.Map) (*words64, error) {
	n := int(m.ValueSize()) * int(m.MaxEntries())
	b, err := unix.Mmap(m.FD(), 0, (n+4095)&^4095, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &words64{b}, nil
}

func (w *words64) at(i int) *uint64        { return (*uint64)(unsafe.Pointer(&w.b[8*i])) }
func (w *words64) load(i int) uint64       { return atomic.LoadUint64(w.at(i)) }
func (w *words64) store(i int, v uint64)   { atomic.StoreUint64(w.at(i), v) }
func (w *words64) or(i int, v uint64)      { atomic.OrUint64(w.at(i), v) }
func (w *words64) at32(i int) *uint32      { return (*uint32)(unsafe.Pointer(&w.b[4*i])) }
func (w *words64) load32(i int) uint32     { return atomic.LoadUint32(w.at32(i)) }
func (w *words64) store32(i int, v uint32) { atomic.StoreUint32(w.at32(i), v) }

func (w *words64) close() {
	if w != nil && w.b != nil {
		_ = unix.Munmap(w.b) // it was mapped by mapWords
		w.b = nil
	}
}

// Where the fields of struct tuning stand, in 32-bit words.
const (
	tuneHalf   = 0
	tuneSample = 1
	tuneTrie4  = 2
	tuneTrie6  = 3
	tuneEpoch  = 4
	tuneClock  = 7
	tuneCookie = 6
	tuneShift  = 8 // and 9
	tuneSeed   = 5 // in 64-bit words
	tuneSecret = 7 // the same
)

// knockedWords is how many words of the map openable stand before those of UDP
// ports that a knock opened.
const knockedWords = 1024

const (
	knownWords = 1 << 18 // of one half of the prefilter
	fewWords   = 1 << 9  // that it has at least
)

// shiftFor returns the shift of a half for so many sources: two words for each.
func shiftFor(sources int) uint32 {
	n := min(max(2*sources, fewWords), knownWords)
	return uint32(64 - bits.Len(uint(n-1)))
}

func (g *Guard) seed() [2]uint64 { return [2]uint64{g.tune.load(tuneSeed), g.tune.load(tuneSeed + 1)} }

// recheck has every open flow compared with tickets and deny lists once more.
// It comes after what narrowed them.
func (g *Guard) recheck() {
	atomic.AddUint32(g.tune.at32(tuneEpoch), 1)
}

// mix is the program's keyed hash of two words.
func mix(seed [2]uint64, a, b uint64) uint64 {
	h := (a ^ seed[0]) * 0x9e3779b97f4a7c15
	h = (h ^ h>>32 ^ b ^ seed[1]) * 0xd6e8feb86659fd93
	h = (h ^ h>>32) * 0xd6e8feb86659fd93
	return h ^ h>>32
}

func halves(w [4]uint32) (upper, lower uint64) {
	r := bits.ReverseBytes32
	return uint64(r(w[0]))<<32 | uint64(r(w[1])), uint64(r(w[2]))<<32 | uint64(r(w[3]))
}

func sourceHash(seed [2]uint64, source [4]uint32) uint64 {
	return mix(seed, uint64(source[0])|uint64(source[1])<<32, uint64(source[2])|uint64(source[3])<<32)
}

// openingKey returns the key that the program has for o.
func openingKey(seed [2]uint64, o *guardOpening) uint64 {
	w := &o.Whom
	return sourceHash(seed, w.Source.W) ^ (uint64(w.Port)<<16|uint64(w.Protocol)<<32)*0x9e3779b97f4a7c15
}

// show sets the bits of the source with hash h in one half.
func (g *Guard) show(half int, h uint64) {
	word := int(h>>g.tune.load32(tuneShift+half)) & (knownWords - 1)
	g.known.or(half*knownWords+word, 1<<(h&63)|1<<(h>>6&63)|1<<(h>>12&63)|1<<(h>>18&63))
}

// makeKnown marks a source that something is open for, in both halves.
func (g *Guard) makeKnown(source [4]uint32) {
	h := sourceHash(g.seed(), source)
	g.show(0, h)
	g.show(1, h)
	g.shown.Add(1)
}

// crowded reports whether more was opened since the last rebuild than the
// prefilter has words for.
func (g *Guard) crowded() bool {
	return g.shown.Load() > 1<<(64-g.tune.load32(tuneShift+int(g.tune.load32(tuneHalf)&1)))/2
}

// rebuildKnown forgets the sources that nothing is open for any more. It fills
// the half that is not read and then has it read. Whoever opens something
// writes the map first and then both halves, so nobody is forgotten. It is for
// one goroutine.
func (g *Guard) rebuildKnown() error {
	expected := g.sources + int(g.shown.Swap(0))
	for range 3 {
		n, err := g.fillKnown(shiftFor(expected))
		if err != nil {
			return err // the old half stays: it has more, never less
		}
		g.sources = n
		if shiftFor(n) >= shiftFor(expected) && shiftFor(2*n) <= shiftFor(expected) {
			break
		}
		expected = n
	}
	g.tune.store32(tuneHalf, (g.tune.load32(tuneHalf)+1)&1)
	return nil
}

// fillKnown fills the half that is not read, with this shift, and returns how
// many sources it found. The shift comes first: who opens something from here
// on, by an old one, has written the map before.
func (g *Guard) fillKnown(shift uint32) (n int, err error) {
	next := int(g.tune.load32(tuneHalf)+1) & 1
	g.tune.store32(tuneShift+next, shift)
	for i := range knownWords {
		g.known.store(next*knownWords+i, 0)
	}
	now := uint64(Now())
	var k uint64
	var v guardOpening
	it := g.maps[guardMapOpenings].Iterate()
	for it.Next(&k, &v) {
		if v.Until <= now {
			_ = g.maps[guardMapOpenings].Delete(&k) // else it stays until the oldest goes
			continue
		}
		g.show(next, sourceHash(g.seed(), v.Whom.Source.W))
		n++
	}
	n += g.flows.sweep(g.tune.load32(tuneClock), moments(g.cfg.FlowIdle), func(source uint64) { g.show(next, source) })
	return n, it.Err()
}

// Now is the clock of tickets and openings: time since the start of the
// machine, sleep not counted.
func Now() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // cannot fail for this clock
	return time.Duration(t.Nano())
}
