package failed

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// A flood of failures is told in part and counted whole.
func TestFailuresAreToldAtABoundedRate(t *testing.T) {
	var q Bucket
	now := time.Now()
	told := 0
	for range 3 * toldMost {
		if ok, _ := q.Allow(now); ok {
			told++
		}
	}
	if told != toldMost {
		t.Errorf("%d told at once, want %d", told, toldMost)
	}
	if ok, missed := q.Allow(now.Add(toldSpan)); !ok || missed != 2*toldMost {
		t.Errorf("a span later: %v, %d missed", ok, missed)
	}
	if ok, _ := q.Allow(now.Add(-time.Hour)); !ok {
		t.Error("nothing is told after the clock was set back")
	}
	if got := Describe(errors.New("a\nb\x00"+strings.Repeat("c", 1000)), "offered"); len(got) > 400 || strings.ContainsAny(got, "\n\x00") || !strings.HasSuffix(got, "; offered") {
		t.Errorf("described as %q", got)
	}
}
