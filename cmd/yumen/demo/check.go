package demo

import (
	"context"
	"io"
)

// Check walks the story.
func (i *Info) Check(ctx context.Context, w io.Writer) error { return nil }

// Running reports whether the demo's socket answers.
func (i *Info) Running() bool { return false }
