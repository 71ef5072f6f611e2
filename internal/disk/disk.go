// Package disk holds what the system calls that make files last and belong to
// one process look like where they exist.
package disk
