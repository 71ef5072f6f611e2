package selftest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestEveryKnownAnswerIsGiven(t *testing.T) {
	start := time.Now()
	if err := Run(); err != nil {
		t.Fatal(err)
	}
	t.Logf("all tests took %s", time.Since(start))
	results := Results()
	if len(results) < 10 {
		t.Errorf("got %d tests, want 10 at least", len(results))
	}
	for _, r := range results {
		if r.Fault != "" || r.Name == "" || r.Chinese == "" || r.Source == "" {
			t.Errorf("got %+v", r)
		}
	}
}

func TestAFailureIsNamed(t *testing.T) {
	table := Tests(rand.Reader)
	table[3].Run = func() error { return equal("encryption", []byte{1}, []byte{2}) }
	table[5].Run = func() error { panic("broken") }
	err := RunTable(table)
	var failed *FailedError
	if !errors.As(err, &failed) || failed.Test != "SM4" {
		t.Errorf("got %v, want a FailedError of SM4", err)
	}
	for _, want := range []string{"SM4: encryption: got 01, want 02", "SM4-GCM: panic: broken", "yumen doctor crypto"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	if results := ResultsOf(table); results[3].Fault == "" || results[5].Fault == "" || results[4].Fault != "" {
		t.Errorf("got %+v", results)
	}
	if RunTable(nil) == nil {
		t.Error("an empty table passed")
	}
}

// cycle repeats its bytes for ever.
type cycle struct {
	b  []byte
	at int
}

func (c *cycle) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = c.b[c.at%len(c.b)]
		c.at++
	}
	return len(p), nil
}

// every replaces each nth byte of good random by zero.
type every int

func (n every) Read(p []byte) (int, error) {
	if _, err := rand.Read(p); err != nil {
		return 0, err
	}
	for i := 0; i < len(p); i += int(n) {
		p[i] = 0
	}
	return len(p), nil
}

func TestHealthFindsBadSources(t *testing.T) {
	random := make([]byte, healthSample)
	rand.Read(random)
	stuck := bytes.Clone(random)
	copy(stuck[100:], make([]byte, mostRepeats))
	for name, c := range map[string]struct {
		source io.Reader
		want   string
	}{
		"stuck":    {&cycle{b: []byte{7}}, "two reads gave the same bytes"},
		"repeats":  {&cycle{b: random}, "two reads gave the same bytes"},
		"run":      {io.MultiReader(bytes.NewReader(stuck), rand.Reader), "times in a row"},
		"biased":   {every(8), "among 512"},
		"counting": {&cycle{b: []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}}, "among 512"},
		"ends":     {bytes.NewReader(random), "EOF"},
		"fails":    {iotest.ErrReader(errors.New("no entropy")), "no entropy"},
	} {
		if err := Health(c.source); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	for range 200 {
		if err := Health(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkRun(b *testing.B) {
	for b.Loop() {
		if err := Run(); err != nil {
			b.Fatal(err)
		}
	}
}
