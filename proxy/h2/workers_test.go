package h2

import (
	"testing"

	"github.com/yumen-zt/yumen/internal/watch"
)

// The alarm that sends walkers home may ring when the end has taken it away.
func TestWalkersAreSentHomeAfterTheEnd(t *testing.T) {
	var w workers
	clock := watch.New()
	w.begin(clock)
	w.end(clock)
	w.sendHome()
}
