package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// handing asks the writer to hand its store over.
type handing struct {
	to   io.WriteCloser
	done chan error // capacity 1
}

// HandOver writes what waits and closes the store, so that another process can
// open it; from then on every record goes to w, a line of JSON each, which
// [Adopt] reads there. Close closes w.
func (a *File) HandOver(w io.WriteCloser) error {
	h := handing{w, make(chan error, 1)}
	select {
	case a.hand <- h:
		return <-h.done
	case <-a.done:
		return errors.New("hand over audit records: the store is closed")
	}
}

// handOver is HandOver on the writer's goroutine.
func (a *File) handOver(w io.WriteCloser) error {
	lines, _ := a.take(nil)
	for rest := lines; len(rest) > 0; {
		var some []byte
		some, rest = part(rest)
		a.write(some, count(some))
	}
	a.writeGap()
	err := a.store.close()
	a.store = stream{w}
	if err != nil {
		return fmt.Errorf("close audit file: %w", err)
	}
	return nil
}

// stream is a store in another process.
type stream struct{ w io.WriteCloser }

func (s stream) write(lines []byte, _ int) error { _, err := s.w.Write(lines); return err }
func (s stream) sync() error                     { return nil }
func (s stream) tick() error                     { return nil }
func (s stream) close() error                    { return s.w.Close() }

// Adopt writes the records that another process hands over to s, until r ends,
// and returns how many came. A line that is none may be between them: other is
// asked first, and returns whether it took the line; nil takes none.
func Adopt(r io.Reader, s Sink, other func(line []byte) bool) (n int, err error) {
	in := bufio.NewReaderSize(r, batchBytes)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("adopt audit records: %w", err)
		}
		if other != nil && other(line) {
			continue
		}
		var rec Record
		if err := json.Unmarshal(line, &rec); err != nil {
			return n, fmt.Errorf("adopt audit records: %w", err)
		}
		s.Write(&rec)
		n++
	}
}
