package selftest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// The health tests take bytes as samples of 8 bits of entropy each, as the
// output of a generator is. The cut-offs of SP 800-90B §4.4 are taken for a
// false alarm in 2^60 windows or less, so that no good machine ever fails.
const (
	healthSample   = 4096 // bytes
	healthWindow   = 512  // samples of the adaptive proportion test
	mostRepeats    = 9    // equal bytes in a row: 1 + 60/8, rounded up
	mostProportion = 28   // samples in a window that equal its first; 2 are expected
)

// Health examines a sample of random: the repetition count test (§4.4.1) and
// the adaptive proportion test (§4.4.2) of NIST SP 800-90B, and that two reads
// differ. It finds a source that is stuck, repeats itself or is badly biased;
// no test of the output can say that a source is good.
func Health(random io.Reader) error {
	sample, again := make([]byte, healthSample), make([]byte, healthSample)
	for _, b := range [][]byte{sample, again} {
		if _, err := io.ReadFull(random, b); err != nil {
			return fmt.Errorf("read random bytes: %w", err)
		}
	}
	if bytes.Equal(sample, again) {
		return errors.New("two reads gave the same bytes")
	}
	for _, b := range [][]byte{sample, again} {
		if err := repetition(b); err != nil {
			return err
		}
		if err := proportion(b); err != nil {
			return err
		}
	}
	return nil
}

func repetition(sample []byte) error {
	run := 1
	for i := 1; i < len(sample); i++ {
		if sample[i] != sample[i-1] {
			run = 1
			continue
		}
		if run++; run >= mostRepeats {
			return fmt.Errorf("the byte 0x%02x came %d times in a row", sample[i], run)
		}
	}
	return nil
}

func proportion(sample []byte) error {
	for ; len(sample) >= healthWindow; sample = sample[healthWindow:] {
		if n := bytes.Count(sample[:healthWindow], sample[:1]); n >= mostProportion {
			return fmt.Errorf("the byte 0x%02x came %d times among %d", sample[0], n, healthWindow)
		}
	}
	return nil
}
