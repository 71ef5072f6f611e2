package bpf

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// What src/guard.h says of flows.
const (
	flowWays   = 4
	flowWords  = 2 // of a slot: tag and moment, alias
	momentLog  = 4 // of jiffies
	momentBits = 24
	allMoments = 1<<momentBits - 1
)

// flows is the table of open 5-tuples, which the program fills.
type flows struct{ slots, sources *words64 }

// sweep frees the slots of flows that were silent for so many moments, calls f
// with the hash of the source of each other one, and returns how many these are.
// now is when the program last wrote a flow: it may be behind, so a flow may stay
// longer. Moments come again after some days: no slot may wait for its own.
func (t *flows) sweep(now uint32, idle uint64, f func(source uint64)) (n int) {
	for i := range len(t.slots.b) / 8 / flowWords {
		word := t.slots.at(i * flowWords)
		seen := atomic.LoadUint64(word)
		if seen>>momentBits == 0 { // free, or being written
			continue
		}
		age := (now - uint32(seen)) & allMoments
		if ahead := age > allMoments/2; !ahead && uint64(age) > idle+1 {
			atomic.CompareAndSwapUint64(word, seen, 0)
			continue
		}
		f(t.sources.load(i))
		n++
	}
	return n
}

// moments returns d in the program's time, rounded up: 16 ticks of the kernel,
// of which the coarse clocks tell the length. No flow is open for more than a
// day, or four at 100 ticks a second.
func moments(d time.Duration) uint64 {
	tick := unix.Timespec{Nsec: 10_000_000} // the longest: what is open closes too early
	_ = unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick)
	return min(uint64(d)/(uint64(tick.Nano())<<momentLog)+1, allMoments/4)
}
