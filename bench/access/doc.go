// Package access measures the decisions, list changes and cuts of package
// access at 100,000 grants. Its benchmarks are in the test file:
//
//	go test -bench . ./bench/access
package access
