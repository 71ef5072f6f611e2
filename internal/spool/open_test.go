package spool

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/crypto/sm4gcm"
)

// TestReopenChecksEverythingQuickly fills a class and opens it again: 64 MiB in
// the normal run, 1 GiB (R3: at most 1 s) with YUMEN_LONG=1. The files are in
// the page cache, as after a restart; from a cold disk it takes what reading
// takes.
func TestReopenChecksEverythingQuickly(t *testing.T) {
	size := int64(cycles(64, 1024)) << 20
	cfg := Config{Dir: t.TempDir(), Key: testKey, Seal: sm4gcm.New, Reserve: -1}
	cfg.Caps[Audit] = 2 * size
	s := mustOpen(t, cfg)
	var wg sync.WaitGroup
	for range 256 {
		wg.Go(func() {
			for s.Stats().Class[Audit].Bytes < size {
				for range 64 {
					if _, err := s.Append(context.Background(), Audit, make([]byte, 400)); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	mustClose(t, s)
	pending := s.Stats().Class[Audit].Pending
	begin := time.Now()
	s = mustOpen(t, cfg)
	took := time.Since(begin)
	defer mustClose(t, s)
	if got := s.Stats().Class[Audit].Pending; got != pending {
		t.Errorf("%d records wait, want %d", got, pending)
	}
	if took > time.Second {
		t.Errorf("opening %d MiB took %v", size>>20, took)
	}
	files, _ := filepath.Glob(filepath.Join(cfg.Dir, "audit", "*.seg"))
	st, _ := os.Stat(files[0])
	t.Logf("%d records in %d segments of %d bytes: opened in %v", pending, len(files), st.Size(), took)
}
