// Package prompt asks the person at the terminal for a secret without showing
// it.
package prompt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxSecret is the greatest number of bytes that a person may type: Table 17
// allows 500 characters.
const maxSecret = 2000

// ErrNoTerminal says that there is nobody to ask.
var ErrNoTerminal = errors.New("no terminal to ask at")

// Secret shows text on the terminal and returns one line that the person types,
// without echo. When ctx ends, the echo is on again and the error is ctx's.
func Secret(ctx context.Context, text string) (string, error) {
	t, err := openTerminal()
	if err != nil {
		return "", err
	}
	defer t.Close()
	restore, err := t.hide()
	if err != nil {
		return "", errors.Join(ErrNoTerminal, err)
	}
	defer restore()
	// A read that no deadline can end goes on until the next line or the second
	// signal; the echo is back by then.
	stop := context.AfterFunc(ctx, func() {
		restore()
		_ = t.SetReadDeadline(time.Unix(1, 0)) // not every terminal has deadlines
	})
	defer stop()
	if _, err := io.WriteString(t, text); err != nil {
		return "", fmt.Errorf("ask at the terminal: %w", err)
	}
	line, err := readLine(t)
	_, _ = io.WriteString(t, "\n") // the line break that was not shown
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		return "", fmt.Errorf("read from the terminal: %w", err)
	}
	return line, nil
}

// readLine reads up to a line feed, byte by byte: what follows is not ours.
func readLine(r io.Reader) (string, error) {
	var line []byte
	var b [1]byte
	for {
		n, err := r.Read(b[:])
		if n == 1 && b[0] == '\n' {
			if k := len(line); k > 0 && line[k-1] == '\r' {
				line = line[:k-1]
			}
			return string(line), nil
		}
		if n == 1 {
			if len(line) == maxSecret {
				return "", fmt.Errorf("more than %d bytes", maxSecret)
			}
			line = append(line, b[0])
		}
		if err != nil {
			if errors.Is(err, io.EOF) && len(line) > 0 {
				return string(line), nil
			}
			return "", err
		}
	}
}
