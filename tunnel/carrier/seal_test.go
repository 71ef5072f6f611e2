package carrier

import (
	"bytes"
	"errors"
	"testing"
)

func ends(t testing.TB) (agent, gateway *Sealer) {
	t.Helper()
	key := bytes.Repeat([]byte{7}, 16)
	a, err := NewSealer(key, false)
	if err != nil {
		t.Fatal(err)
	}
	g, err := NewSealer(key, true)
	if err != nil {
		t.Fatal(err)
	}
	return a, g
}

func sealed(t testing.TB, s *Sealer, kind byte, body string) (out []byte) {
	t.Helper()
	if err := s.Seal(kind, []byte(body), func(b []byte) error { out = bytes.Clone(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestGCR002_M73_SealedMessages(t *testing.T) {
	a, g := ends(t)
	b := sealed(t, a, AccessRequest, "marker-string")
	if bytes.Contains(b, []byte("marker")) || len(b) != len("marker-string")+sealOverhead {
		t.Errorf("sealed: % x", b)
	}
	kind, body, err := g.Open(b)
	if err != nil || kind != AccessRequest || string(body) != "marker-string" {
		t.Fatalf("open: %d %q %v", kind, body, err)
	}
	if _, _, err := g.Open(b); !errors.Is(err, ErrSealed) {
		t.Errorf("the same message again: %v", err)
	}
}

func TestGCR002_M73_NoncesAreNeverUsedTwice(t *testing.T) {
	a, _ := ends(t)
	seen := map[string]bool{}
	for range 10_000 {
		n := string(sealed(t, a, Renewal, "x")[9:sealHead])
		if seen[n] {
			t.Fatal("a nonce came twice")
		}
		seen[n] = true
	}
}

func TestGCR002_M2_EveryFlippedBitIsRefused(t *testing.T) {
	a, g := ends(t)
	b := sealed(t, a, AccessRequest, "body")
	for i := range len(b) * 8 {
		c := bytes.Clone(b)
		c[i/8] ^= 1 << (i % 8)
		if _, _, err := g.Open(c); !errors.Is(err, ErrSealed) {
			t.Fatalf("bit %d flipped: %v", i, err)
		}
	}
	for n := range b {
		if _, _, err := g.Open(b[:n]); !errors.Is(err, ErrSealed) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	if _, _, err := g.Open(b); err != nil {
		t.Errorf("the faults before cost the genuine message: %v", err)
	}
}

func TestSealedMessagesKeepDirectionAndOrder(t *testing.T) {
	a, g := ends(t)
	b := sealed(t, a, Renewal, "mine")
	if _, _, err := a.Open(b); !errors.Is(err, ErrSealed) {
		t.Errorf("a message sent back to its sender: %v", err)
	}
	later := sealed(t, a, Renewal, "later")
	if _, _, err := g.Open(later); err != nil {
		t.Fatal(err) // a gap is no fault: an answer may be for nobody
	}
	if _, _, err := g.Open(b); !errors.Is(err, ErrSealed) {
		t.Errorf("an earlier message after a later one: %v", err)
	}
}

func FuzzOpenSealed(f *testing.F) {
	a, _ := ends(f)
	f.Add(sealed(f, a, AccessRequest, "{}"))
	f.Add([]byte{12})
	f.Fuzz(func(t *testing.T, b []byte) {
		key := bytes.Repeat([]byte{9}, 16) // another tunnel's
		g, err := NewSealer(key, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := g.Open(b); !errors.Is(err, ErrSealed) {
			t.Errorf("opened % x: %v", b, err)
		}
	})
}
