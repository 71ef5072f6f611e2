package gateway

import (
	"crypto/ecdsa"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The key that applications remember outlives a restart; another one can be
// published beside it.
func TestM153_AssertionKeysOutliveARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "assertion.key")
	one, err := assertionKeys(path)
	must(t, err)
	again, err := assertionKeys(path)
	must(t, err)
	if len(one) != 1 || len(again) != 1 || !one[0].Public().(*ecdsa.PublicKey).Equal(again[0].Public()) {
		t.Fatalf("%d keys, then %d, or another", len(one), len(again))
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	first, err := os.ReadFile(path)
	must(t, err)
	second, err := makeAssertionKey(path + "2")
	must(t, err)
	must(t, os.WriteFile(path, append(second, first...), 0o600))
	if both, err := assertionKeys(path); err != nil || len(both) != 2 {
		t.Errorf("%d keys, %v, want two", len(both), err)
	}
	must(t, os.WriteFile(path, []byte("no key"), 0o600))
	if _, err := assertionKeys(path); err == nil || !strings.Contains(err.Error(), "no PEM key") {
		t.Errorf("junk: %v", err)
	}
	must(t, os.Chmod(path, 0o644))
	if _, err := assertionKeys(path); err == nil || !strings.Contains(err.Error(), "0600") && !strings.Contains(err.Error(), "600") {
		t.Errorf("readable by others: %v", err)
	}
}
