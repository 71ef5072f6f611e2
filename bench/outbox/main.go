// Command outbox measures internal/spool beside bbolt, both with group commit:
// 1, 16 and 256 writers that each wait until their record is on disk. Rounds of
// the two alternate, so that a noisy disk meets both, and the report gives
// ratios within a round.
//
//	go run ./bench/outbox -dir DIR -rounds 5 -time 1500ms
//
// spool seals each record with SM4-GCM and chains it with SM3; bbolt stores
// plain bytes, and sealed ones in a third engine that pays the same cipher.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
	"github.com/yumen-zt/yumen/internal/spool"
)

func main() {
	dir := flag.String("dir", os.TempDir(), "folder on the disk to measure")
	rounds := flag.Int("rounds", 5, "rounds of all engines")
	each := flag.Duration("time", 1500*time.Millisecond, "time of one cell")
	size := flag.Int("size", 400, "bytes of a record")
	flag.Parse()
	if err := run(*dir, *rounds, *each, *size); err != nil {
		fmt.Fprintln(os.Stderr, "outbox:", err)
		os.Exit(1)
	}
}

// engine stores records so that they survive a power cut.
type engine interface {
	append(payload []byte) error
	close() error
}

var engines = []struct {
	name string
	open func(dir string) (engine, error)
}{
	{"spool", openSpool},
	{"bbolt", func(dir string) (engine, error) { return openBolt(dir, false) }},
	{"bbolt, sealed", func(dir string) (engine, error) { return openBolt(dir, true) }},
	{"write and fdatasync", openBare},
}

// cell is what one engine did in one round.
type cell struct {
	rate     float64       // records a second
	cpu      time.Duration // of the process, a record: what load on the machine changes least
	p50, p99 time.Duration
}

func run(dir string, rounds int, each time.Duration, size int) error {
	fmt.Println("| writers | engine | records/s, median (all rounds) | p50 | p99 | CPU a record | spool's rate / this one's, a round |")
	fmt.Println("|---|---|---|---|---|---|---|")
	for _, writers := range []int{1, 16, 256} {
		cells := make([][]cell, len(engines))
		engines := engines
		if writers > 1 {
			engines = engines[:3] // a bare file has no group commit
		}
		for round := range rounds {
			for i := range engines {
				k := (i + round) % len(engines) // another one begins each round
				c, err := measure(dir, k, writers, each, size)
				if err != nil {
					return fmt.Errorf("measure %s: %w", engines[k].name, err)
				}
				cells[k] = append(cells[k], c)
			}
		}
		for k, e := range engines {
			var rates, ratios []float64
			var p50, p99, cpu []time.Duration
			for r, c := range cells[k] {
				rates, ratios = append(rates, c.rate), append(ratios, cells[0][r].rate/c.rate)
				p50, p99, cpu = append(p50, c.p50), append(p99, c.p99), append(cpu, c.cpu)
			}
			slices.Sort(rates)
			slices.Sort(ratios)
			slices.Sort(p50)
			slices.Sort(p99)
			slices.Sort(cpu)
			fmt.Printf("| %d | %s | %.0f (%.0f to %.0f) | %v | %v | %v | %.2f (%.2f to %.2f) |\n", writers, e.name,
				rates[rounds/2], rates[0], rates[rounds-1], p50[rounds/2].Round(time.Microsecond), p99[rounds/2].Round(10*time.Microsecond), cpu[rounds/2].Round(10*time.Nanosecond),
				ratios[rounds/2], ratios[0], ratios[rounds-1])
		}
	}
	return nil
}

// measure runs one cell in a fresh folder.
func measure(dir string, k, writers int, each time.Duration, size int) (cell, error) {
	dir, err := os.MkdirTemp(dir, "outbox-")
	if err != nil {
		return cell{}, err
	}
	defer os.RemoveAll(dir)
	e, err := engines[k].open(dir)
	if err != nil {
		return cell{}, err
	}
	var (
		mu    sync.Mutex
		took  []time.Duration
		fault error
		wg    sync.WaitGroup
	)
	begin, used := time.Now(), cpuTime()
	for range writers {
		wg.Go(func() {
			payload := make([]byte, size)
			var mine []time.Duration
			for {
				at := time.Now()
				if at.Sub(begin) > each {
					break
				}
				if err := e.append(payload); err != nil {
					mu.Lock()
					fault = err
					mu.Unlock()
					break
				}
				mine = append(mine, time.Since(at))
			}
			mu.Lock()
			took = append(took, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	all := time.Since(begin)
	used = cpuTime() - used
	if err := e.close(); fault == nil {
		fault = err
	}
	if fault != nil || len(took) == 0 {
		return cell{}, fmt.Errorf("%d records: %w", len(took), fault)
	}
	slices.Sort(took)
	return cell{float64(len(took)) / all.Seconds(), used / time.Duration(len(took)), took[len(took)/2], took[len(took)*99/100]}, nil
}

// bare is a file: each record is written and synced, over blocks that are there.
type bare struct {
	f   *os.File
	off int64
	mu  sync.Mutex
}

const bareSize = 64 << 20 // written over again: a file that grows pays for its size, too

func openBare(dir string) (engine, error) {
	f, err := os.Create(filepath.Join(dir, "bare"))
	if err != nil {
		return nil, err
	}
	zeros := make([]byte, 1<<20)
	for off := int64(0); off < bareSize; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros, off); err != nil {
			return nil, err
		}
	}
	return &bare{f: f}, f.Sync()
}

func (b *bare) append(p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.off+int64(len(p)) > bareSize {
		b.off = 0
	}
	_, err := b.f.WriteAt(p, b.off)
	if err == nil {
		err = syscall.Fdatasync(int(b.f.Fd()))
	}
	b.off += int64(len(p))
	return err
}

func (b *bare) close() error { return b.f.Close() }

// cpuTime returns what the process has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// spoolEngine appends alerts, the class that waits for its sync.
type spoolEngine struct{ s *spool.Spool }

func openSpool(dir string) (engine, error) {
	s, err := spool.Open(spool.Config{Dir: filepath.Join(dir, "spool"), Key: make([]byte, 32), Seal: sm4gcm.New, Reserve: -1, Caps: [spool.NumClasses]int64{spool.Alert: 4 << 30}})
	if err != nil {
		return nil, err
	}
	return spoolEngine{s}, nil
}

func (e spoolEngine) append(payload []byte) error {
	_, err := e.s.Append(context.Background(), spool.Alert, payload)
	return err
}

func (e spoolEngine) close() error { return e.s.Close() }
