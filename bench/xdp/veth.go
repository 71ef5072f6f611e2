//go:build linux

package main

import (
	"fmt"
	"net"
	"runtime"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/bpf"
)

// veth measures the CPU time of a packet that is dropped at g0, with what it
// costs to send it.
func veth(rounds, packets, entries int) error {
	all := []receiver{
		{"bare XDP_DROP, native", func() (func(), error) {
			p, err := bareDrop()
			if err != nil {
				return nil, err
			}
			return attach(p, link.XDPDriverMode)
		}},
		{"xdp-filter, UDP ports alone", xdpFilter("udp", 23, 8443, 40000)},
		{"xdp-filter, all features", xdpFilter("all", 23, 8443, 40000)},
		{"guard, empty maps", guard(bpf.Native, 0)},
		{fmt.Sprintf("guard, %d entries in each map", entries), guard(bpf.Native, entries)},
		{"guard, generic mode", guard(bpf.Generic, 0)},
		{"nft netdev ingress, empty set", nftIngress},
		{"guard, second tier (nftables)", secondTier},
	}
	kinds := []struct {
		name     string
		protocol uint8
		segment  []byte
	}{{"UDP", 17, udp(40000, 23, make([]byte, 18))}, {"UDP to 8443", 17, udp(40000, 8443, make([]byte, 18))}, {"SYN", 6, syn(40000, 23)}, {"SYN to 8443", 6, syn(40000, 8443)}, {"UDP to 40000", 17, udp(53, 40000, make([]byte, 18))}}
	times := make([][5][]float64, len(all))
	lost := make([]float64, len(all))
	// Each has a veth of its own, which stays as it is: only the sender changes.
	type stand struct {
		p    *place
		off  func()
		from [5]*flood
	}
	stands := make([]stand, len(all))
	for i, r := range all {
		p, err := newPlace()
		if err != nil {
			return err
		}
		var mac net.HardwareAddr
		err = p.in(p.inside, func() (err error) {
			ifc, err := net.InterfaceByName("g0")
			if err != nil {
				return err
			}
			mac = ifc.HardwareAddr
			stands[i].off, err = r.on()
			return err
		})
		if err != nil {
			fmt.Printf("NOT MEASURED: %s: %v\n", r.name, err)
			continue
		}
		defer stands[i].off()
		stands[i].p = p
		err = p.in(p.outside, func() (err error) {
			for k, kind := range kinds {
				if stands[i].from[k], err = newFlood(frame(mac, [4]byte{16, 0, 0, 1}, kind.protocol, kind.segment), 1); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	runtime.LockOSThread() // never given back
	if err := pin(1); err != nil {
		return err
	}
	for range rounds {
		for i := range stands {
			s := &stands[i]
			if s.p == nil {
				continue
			}
			for k := range kinds {
				// The program redirects to h0, which is looked up in this thread's namespace.
				if err := unix.Setns(s.p.inside, unix.CLONE_NEWNET); err != nil {
					return err
				}
				was := received()
				if err := unix.Setns(s.p.outside, unix.CLONE_NEWNET); err != nil {
					return err
				}
				before, err := s.from[k].spent()
				if err != nil {
					return err
				}
				if err := s.from[k].send(packets); err != nil {
					return err
				}
				after, err := s.from[k].spent()
				if err != nil {
					return err
				}
				if err := unix.Setns(s.p.inside, unix.CLONE_NEWNET); err != nil {
					return err
				}
				got := received() - was
				lost[i] = max(lost[i], 1-float64(got)/float64(packets))
				times[i][k] = append(times[i][k], float64((after-before).Nanoseconds())/float64(packets))
			}
		}
	}
	fmt.Printf("\nUnauthorized packets on a veth, CPU time with what it takes to send them. 8443 is the hidden port; 23 is one that nothing is ever open at; at 40000 this host might wait for an answer.\n\n")
	fmt.Printf("| receiver | UDP to 23, ns | x bare | x xdp-filter (udp) | x xdp-filter (all) | x nft ingress | UDP to 8443, ns | x bare | UDP to 40000, ns | SYN to 23, ns | SYN to 8443, ns | lost before it |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	low := func(i, k int) float64 {
		if len(times[i][k]) == 0 {
			return 0
		}
		n, _ := least(times[i][k])
		return n
	}
	for i, r := range all {
		n := low(i, 0)
		fmt.Printf("| %s | %.1f | %.2f | %.2f | %.2f | %.2f | %.1f | %.2f | %.1f | %.1f | %.1f | %.1f %% |\n", r.name, n, n/low(0, 0), n/low(1, 0), n/low(2, 0), n/low(6, 0), low(i, 1), low(i, 1)/low(0, 1), low(i, 4), low(i, 2), low(i, 3), 100*lost[i])
	}
	return nil
}
