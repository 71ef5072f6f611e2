package ctlclient

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/wire"
)

// stored100k is a list of 100,000 grants as a control center sends it and a
// gateway stores it.
func stored100k(t testing.TB, w *world) []byte {
	const rows, perPage = 100_000, 4000
	s := listSpec{name: wire.GrantsList, version: 7}
	for from := 0; from < rows; from += perPage {
		var page []string
		for i := range perPage {
			page = append(page, grantRow(from+i+1, "APP00000001", "APP00000002"))
		}
		s.pages = append(s.pages, page)
	}
	return w.make(s)
}

func usedCPU() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRead100k reads a list of 100,000 grants as it arrives, and again from
// the state folder, as at a start without the control center.
func BenchmarkRead100k(b *testing.B) {
	w := newWorld(b)
	v := w.verifier(nil)
	raw := stored100k(b, w)
	for _, stored := range []bool{false, true} {
		b.Run(fmt.Sprintf("stored=%v", stored), func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			cpu := usedCPU()
			for b.Loop() {
				l, err := v.read(bytes.NewReader(raw), wire.GrantsList, Floor{}, origin{time.Now, stored})
				if err != nil || len(l.rows) != 100_000 {
					b.Fatal(len(l.rows), err)
				}
			}
			b.ReportMetric(float64(usedCPU()-cpu)/float64(b.N)/1e6, "cpu-ms/op")
		})
	}
}
