package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// maxLast bounds [Selection.Last].
const maxLast = 100_000

// Selection chooses records of a sealed store by when they were written.
type Selection struct {
	Since, Until time.Time // zero: no bound
	Last         int       // of these, the newest so many; 0: all
}

// ParseSelection reads times (RFC 3339) and a number; an empty text is no bound.
func ParseSelection(since, until, last string) (s Selection, err error) {
	read := func(name, text string) (t time.Time) {
		if text == "" {
			return t
		}
		t, e := time.Parse(time.RFC3339, text)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %q is no time such as 2026-01-02T15:04:05Z", name, text))
		}
		return t
	}
	s.Since, s.Until = read("since", since), read("until", until)
	if last != "" {
		n, e := strconv.Atoi(last)
		if e != nil || n < 1 || n > maxLast {
			err = errors.Join(err, fmt.Errorf("last: %q is no number from 1 to %d", last, maxLast))
		}
		s.Last = n
	}
	return s, err
}

// Copy writes the records to w as lines of JSON, the oldest first, and returns
// how many. An error of the store comes after everything that can be read.
func (s Selection) Copy(w io.Writer, store *Sealing) (n int, err error) {
	out := bufio.NewWriter(w)
	var newest [][]byte // with Last: a ring
	put := func(line []byte) error {
		n++
		if _, err := out.Write(line); err != nil {
			return err
		}
		return out.WriteByte('\n')
	}
	seen := 0
	err = store.Read(func(_ uint64, at time.Time, line []byte) error {
		switch {
		case !s.Since.IsZero() && at.Before(s.Since), !s.Until.IsZero() && !at.Before(s.Until):
			return nil
		case s.Last == 0:
			return put(line)
		case len(newest) < s.Last:
			newest = append(newest, append([]byte(nil), line...))
		default:
			newest[seen%s.Last] = append(newest[seen%s.Last][:0], line...)
		}
		seen++
		return nil
	})
	for i := range newest {
		if e := put(newest[(max(seen-len(newest), 0)+i)%len(newest)]); e != nil {
			return n, e
		}
	}
	return n, errors.Join(err, out.Flush())
}
