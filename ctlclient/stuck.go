package ctlclient

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/internal/spool"
)

// A control center that fails at one record, each time that it comes, would hold
// up the class for ever. When it has said so often enough, and takes a newer
// record of the class meanwhile, the record becomes a gap that is named there and
// here, and an alert. As long as it takes nothing, by a disk that is full or a
// path that is away, nothing is given up.
const (
	stuckTries = 5
	stuckFor   = 5 * time.Minute
)

// stuck is the record at the head of a class that the control center fails at.
type stuck struct {
	seq   uint64
	tries int
	since time.Time // on the monotonic clock
}

// failed notes that the control center failed at the first record of a class. It
// reports whether that is to be looked into.
func (s *stuck) failed(seq uint64) bool {
	if s.seq != seq || s.tries == 0 {
		*s = stuck{seq: seq, since: time.Now()}
	}
	s.tries++
	return s.tries >= stuckTries && time.Since(s.since) >= stuckFor
}

// head judges an error of the first record of class k, when nothing of s was
// taken: it goes on, or the record was given up (errGivenUp).
func (c *chain) head(ctx context.Context, k Class, s *stretch, why error) error {
	var failed *failedError
	if !errors.As(why, &failed) && !errors.Is(why, errNothingTaken) || s.items[0].Type == "" {
		return why
	}
	seq := s.items[0].Seq
	if !c.r.stuck[k].failed(seq) {
		return why
	}
	newer, _, err := c.newer(k, seq, 1)
	if err != nil || len(newer.items) == 0 {
		return why // nobody waits behind it
	}
	if err := c.sendAhead(ctx, k, newer); err != nil {
		return why
	}
	if _, kept := c.position(k); !kept[newer.items[0].Seq] {
		return why
	}
	c.r.log.Error("report given up: the control center fails at it and takes those behind it", zap.Stringer("class", k), zap.Uint64("seq", seq),
		zap.Int("tries", c.r.stuck[k].tries), zap.String("result", why.Error()))
	c.r.refusedFor(k, s.items[0].Body, &RefusedError{Table: tableOf(s.items[0].Type), Reason: reason.InternalError,
		Result: fmt.Sprintf("%s (%d times in %v)", reason.InternalError.Result(), c.r.stuck[k].tries, time.Since(c.r.stuck[k].since).Round(time.Second))})
	if err := c.s.Drop(classOf(k), seq, spool.Refused); err != nil {
		return err
	}
	c.r.stuck[k] = stuck{}
	return errGivenUp
}

// errNothingTaken says that the control center stopped at the first record.
var errNothingTaken = fmt.Errorf("%w: it takes nothing", ErrDown)
