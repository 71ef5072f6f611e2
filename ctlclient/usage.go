package ctlclient

import (
	"sync"

	"github.com/yumen-zt/yumen/wire"
)

// Usage is a host's load in percent, 0 to 100. A negative figure is unknown
// and is left out of Tables 10 and 21.
type Usage struct{ CPU, Memory, Disk float64 }

// usage writes a figure as the tables want it; "" leaves it out.
func usage(percent float64) string {
	if percent < 0 {
		return ""
	}
	return wire.FormatUsage(percent)
}

// Probe measures this host: the processors since the last measurement, memory
// that is not available, and the disk that holds a folder. Where the system
// gives no figure it is negative. It may be used by several goroutines at once.
type Probe struct {
	dir string

	mu         sync.Mutex
	busy, idle uint64 // guarded by mu; ticks of all processors

	last float64 // guarded by mu; CPU, so that quick repeats do not divide by nothing
}

// NewProbe returns a probe whose disk figure is that of dir. Its first CPU
// figure is over the time since this call.
func NewProbe(dir string) *Probe {
	p := &Probe{dir: dir, last: -1}
	p.busy, p.idle, _ = cpuTicks()
	return p
}

// Usage measures.
func (p *Probe) Usage() Usage {
	return Usage{CPU: p.cpu(), Memory: memoryUsage(), Disk: diskUsage(p.dir)}
}

func (p *Probe) cpu() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	busy, idle, ok := cpuTicks()
	if !ok {
		return -1
	}
	db, di := busy-p.busy, idle-p.idle
	if busy < p.busy || idle < p.idle || db+di < 10 { // a tenth of a second of one processor
		if p.last < 0 && busy+idle > 0 {
			p.last = 100 * float64(busy) / float64(busy+idle) // since the start of the system
		}
		return p.last
	}
	p.busy, p.idle = busy, idle
	p.last = 100 * float64(db) / float64(db+di)
	return p.last
}
