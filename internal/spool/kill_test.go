package spool

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
)

// child appends to every class until it is killed, and says on its standard
// output what was acknowledged to it: class and number, 9 bytes each.
func child(dir string) {
	s, err := Open(Config{Dir: dir, Key: testKey, Seal: sm4gcm.New, Reserve: -1, SegmentBytes: 256 << 10})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	said := make(chan [9]byte, 1024)
	for w := range 8 {
		c := Class(w) % NumClasses
		go func() {
			for {
				seq, err := s.Append(context.Background(), c, killPayload(c))
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				b := [9]byte{byte(c)}
				binary.BigEndian.PutUint64(b[1:], seq)
				said <- b
			}
		}()
	}
	for b := range said {
		os.Stdout.Write(b[:])
	}
}

func killPayload(c Class) []byte { return fmt.Appendf(nil, "%s %0400d", c, 1) }

// cycles returns how often the tests of faults go round.
func cycles(short, long int) int {
	if os.Getenv("YUMEN_LONG") == "1" {
		return long
	}
	return short
}

func TestR3_KillLosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var acked [NumClasses]spans
	total, slowest := 0, time.Duration(0)
	for cycle := range cycles(20, 200) {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "YUMEN_SPOOL_CHILD="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(time.Duration(20+rand.IntN(80))*time.Millisecond, func() { cmd.Process.Kill() })
		r := bufio.NewReader(out)
		for {
			var b [9]byte
			if _, err := io.ReadFull(r, b[:]); err != nil {
				break
			}
			seq := binary.BigEndian.Uint64(b[1:])
			if acked[b[0]].has(seq) {
				t.Fatalf("cycle %d: %s %d was given twice", cycle, Class(b[0]), seq)
			}
			acked[b[0]].add(seq, seq)
			total++
		}
		kill.Stop()
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
		begin := time.Now()
		s := mustOpen(t, Config{Dir: dir, Key: testKey, Seal: sm4gcm.New, Reserve: -1, SegmentBytes: 256 << 10})
		slowest = max(slowest, time.Since(begin))
		for c := range NumClasses {
			var here spans
			last := uint64(0)
			for _, r := range all(t, s, c) {
				if string(r.Payload) != string(killPayload(c)) {
					t.Fatalf("cycle %d: %s %d has another payload", cycle, c, r.Seq)
				}
				here.add(r.Seq, r.Seq)
				last = r.Seq
			}
			for _, p := range acked[c] {
				if lost := here.without(p.from, p.to); len(lost) > 0 {
					t.Fatalf("cycle %d: %s: acknowledged and lost: %v", cycle, c, lost)
				}
			}
			if p, err := s.Prove(c, 1, last); err != nil || !p.Whole() || len(p.Gaps) > 0 {
				t.Fatalf("cycle %d: %s: proof %+v, %v", cycle, c, p, err)
			}
			for seq := range last { // the next cycle begins with what it appends
				s.Ack(c, seq+1)
			}
			acked[c] = nil
		}
		mustClose(t, s)
	}
	if total == 0 {
		t.Fatal("nothing was acknowledged: the test tests nothing")
	}
	t.Logf("%d acknowledged, 0 lost; slowest opening %v", total, slowest)
}
