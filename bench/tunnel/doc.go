//go:build linux

// Command tunnel measures the tunnel between agent and gateway beside what it
// competes with: bare TCP under the same cipher, yamux, smux, OpenVPN and
// wireguard-go. README.md has the method. It is a module of its own, so that
// the peers stay out of the product's go.mod.
//
//	main.go      flags; the two network namespaces and the processes in them
//	material.go  keys of both ends
//	carrier.go   what carries: TCP, TCP sealed with SM4-GCM, TLCP, TLS
//	mux.go       what shares a carrier: ours, yamux, smux, nothing
//	serve.go     the far end
//	drive.go     the near end: rounds of bulk and of round trips
//	vpn.go       OpenVPN and wireguard-go
//	idle.go      memory of idle tunnels
//	lossy.go     one connection and four on a path with loss
//	storm.go     everybody's return to a restarted gateway
//	reports.go   reports of many agents
//	table.go     medians, ranges and goals
package main
