package control

import (
	"io"
	"log/slog"
	"testing"

	"go.uber.org/goleak"
)

// Every goroutine of a control center ends with its Run.
func TestMain(m *testing.M) {
	// The login's protocol library reports refused requests here.
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	goleak.VerifyTestMain(m)
}
