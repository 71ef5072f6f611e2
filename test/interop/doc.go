// Package interop holds tests against protocol stacks that we did not write.
// There is nothing in it to import.
package interop
