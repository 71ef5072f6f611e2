// Package selftest checks at the start of a process that the cryptography
// still computes what the standards say, and that the random source is alive:
// known-answer tests of SM2 (GB/T 32918), SM3 (GB/T 32905), HMAC-SM3, SM4
// (GB/T 32907) as a block cipher, in CBC and in GCM, of TLCP's key derivation
// (GB/T 38636), and health tests of random bytes. All of it takes a few
// milliseconds.
//
// [Run] is for who is about to open a listener: on an error none must be
// opened. [Results] is for people.
package selftest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"
)

// Test is one row of the table.
type Test struct {
	Name    string       // "SM4-GCM"
	Chinese string       // what is tested, for people
	Source  string       // where the known answer stands
	Run     func() error // nil: as it must be
}

// Result is the outcome of one test.
type Result struct {
	Name    string        `json:"name"`
	Chinese string        `json:"zh"`
	Source  string        `json:"source"`
	Took    time.Duration `json:"took_ns"`
	Fault   string        `json:"fault,omitempty"` // empty: passed
}

// FailedError names the test that failed.
type FailedError struct {
	Test string
	Err  error
}

// Error returns the test, the cause and the remedy.
func (e *FailedError) Error() string {
	return fmt.Sprintf("self-test of %s: %v (do not use this machine or this binary for keys; run yumen doctor crypto)", e.Test, e.Err)
}

// Unwrap returns the cause.
func (e *FailedError) Unwrap() error { return e.Err }

// Run runs the tests of [Tests] over crypto/rand and returns a [FailedError]
// for each that failed, joined.
func Run() error { return RunTable(Tests(rand.Reader)) }

// Results runs the same tests and returns what became of each.
func Results() []Result { return ResultsOf(Tests(rand.Reader)) }

// RunTable is [Run] for another table.
func RunTable(table []Test) error {
	if len(table) == 0 {
		return errors.New("run self-tests: there are none")
	}
	var faults []error
	for _, t := range table {
		if err := t.try(); err != nil {
			faults = append(faults, &FailedError{t.Name, err})
		}
	}
	return errors.Join(faults...)
}

// ResultsOf is [Results] for another table.
func ResultsOf(table []Test) []Result {
	results := make([]Result, 0, len(table))
	for _, t := range table {
		start := time.Now()
		err := t.try()
		r := Result{Name: t.Name, Chinese: t.Chinese, Source: t.Source, Took: time.Since(start)}
		if err != nil {
			r.Fault = err.Error()
		}
		results = append(results, r)
	}
	return results
}

// try runs a test; a panic of broken code is a failure, too.
func (t Test) try() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return t.Run()
}
