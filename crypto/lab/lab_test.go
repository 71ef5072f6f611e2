package lab

import (
	"testing"

	"github.com/yumen-zt/yumen/crypto/certid"
)

func BenchmarkParty(b *testing.B) {
	ca, err := New(Config{Iterations: 1})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := ca.Party(b.TempDir()+"/keys", []byte("correct horse"), certid.Identity{Gateway: "GW000000001", Device: "DEV00000001"}, []string{"gw.example", "127.0.0.1"}); err != nil {
			b.Fatal(err)
		}
	}
}
