//go:build race

package sock

// raced builds call package syscall, which tells the race detector that what is
// read comes after what was written.
const raced = true
