// Package badpath makes network paths bad, between real sockets.
//
//	relay.go         delay and loss, by a relay in user space
//	kernel_linux.go  packets that vanish, by nftables in a network namespace
//
// The kernels that tests run on may have no netem, and what a relay can do is
// what a user of TCP sees of a path: every byte comes, in order, but later. A
// relay can not make packets vanish; nftables can.
package badpath
