package wire

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkDecodeGrantList reads one page of the access grant list, 4,000 rows
// (M54: a list of 100,000 is 25 of them).
func BenchmarkDecodeGrantList(b *testing.B) {
	rows := make([]string, 4000)
	for i := range rows {
		rows[i] = strings.Replace(goodGrant, "USR00000001", fmt.Sprintf("USR%08d", i), 1)
	}
	raw := grantList(rows...)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if l, bad, err := DecodeGrantList(raw, Lax); err != nil || len(bad) > 0 || len(l.Data) != len(rows) {
			b.Fatal(err, bad)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(rows)), "ns/row")
}

func BenchmarkDecodeAccessRequest(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode[AccessRequest]([]byte(accessRequest), Lax); err != nil {
			b.Fatal(err)
		}
	}
}
