//go:build linux

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/bpf"
)

// goodput measures what an established TLS connection into the guarded
// namespace carries when it is paced at half of what it can, and what of it a
// flood on the other core leaves: behind the guard, and with nothing in front.
func goodput(rate, pairs int, most float64, length time.Duration) error {
	if err := pinAll(0); err != nil {
		return err
	}
	fmt.Printf("\nAn established TLS 1.3 connection, paced at half of its rate and %.0f MB/s at most, under %d unauthorized UDP packets a second on core 1, its two ends on core 0; medians of %d pairs, calm and stormy in turn.\n\n", most/1e6, rate, pairs)
	fmt.Println("| in front | unpaced MB/s | paced MB/s | under the flood | kept | least kept | flood sent, kpps | arrived | least |\n|---|---|---|---|---|---|---|---|---|")
	for _, r := range []receiver{
		{"guard, native", guard(bpf.Native, 0)}, {"guard, second tier (nftables)", secondTier},
		{"nothing: the stack", func() (func(), error) { return func() {}, nil }},
	} {
		if err := goodputOf(r, rate, pairs, most, length); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

func goodputOf(r receiver, rate, pairs int, most float64, length time.Duration) error {
	p, err := newPlace()
	if err != nil {
		return err
	}
	cfg, err := selfSigned()
	if err != nil {
		return err
	}
	var mac net.HardwareAddr
	var ln net.Listener
	var off func()
	err = p.in(p.inside, func() (err error) {
		ifc, err := net.InterfaceByName("g0")
		if err != nil {
			return err
		}
		mac = ifc.HardwareAddr
		if ln, err = tls.Listen("tcp", "10.77.0.1:443", cfg); err != nil {
			return err
		}
		off, err = r.on()
		return err
	})
	if err != nil {
		return err
	}
	defer off()
	defer ln.Close()
	var got atomic.Int64
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			got.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	var c net.Conn
	if err := p.in(p.outside, func() (err error) {
		c, err = tls.Dial("tcp", "10.77.0.1:443", &tls.Config{InsecureSkipVerify: true})
		return err
	}); err != nil {
		return err
	}
	defer c.Close()
	// carry sends for length at most bps bytes a second (0: all it can) and
	// returns what arrived, in bytes a second.
	carry := func(bps float64) (float64, error) {
		b := make([]byte, 32<<10)
		start, was, sent := time.Now(), got.Load(), 0
		for time.Since(start) < length {
			if bps > 0 {
				if ahead := time.Duration(float64(sent)/bps*1e9) - time.Since(start); ahead > 0 {
					time.Sleep(ahead)
				}
			}
			if err := c.SetWriteDeadline(time.Now().Add(length)); err != nil {
				return 0, err
			}
			n, err := c.Write(b)
			if err != nil {
				return 0, err
			}
			sent += n
		}
		return float64(got.Load()-was) / time.Since(start).Seconds(), nil
	}
	full, err := carry(0)
	if err != nil {
		return err
	}
	half := min(full/2, most)
	var from *flood
	var held link.Link // in the kernel's dispatcher: each run of it would else wait for all CPUs, twice
	if err := p.in(p.outside, func() (err error) {
		if from, err = newFlood(frame(mac, [4]byte{16, 0, 0, 1}, 17, udp(53, 40000, make([]byte, 18))), 1); err != nil {
			return err
		}
		lo, err := index("lo")
		if err != nil {
			return err
		}
		held, err = link.AttachXDP(link.XDPOptions{Program: from.prog, Interface: lo, Flags: link.XDPGenericMode})
		return err
	}); err != nil {
		return err
	}
	defer held.Close()
	arrived := func() (n uint64) {
		_ = p.in(p.inside, func() error { n = received(); return nil }) // 0 fails below
		return n
	}
	var calm, stormy, kept, flooded, sent []float64
	for range pairs { // in turn, so that what else runs here meets both
		was := arrived()
		n, err := carry(half)
		if err != nil {
			return err
		}
		own := float64(arrived()-was) / n // packets of the connection itself
		stop, done := make(chan struct{}), make(chan error, 1)
		begun := time.Now()
		was = arrived()
		go func() {
			done <- p.in(p.outside, func() error {
				// The wire waits for nobody: its thread runs when its packets are due.
				if err := errors.Join(pin(1), unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)); err != nil {
					return err
				}
				n, took, err := from.pace(rate, stop)
				sent = append(sent, float64(n)/took.Seconds()/1e3)
				return err
			})
		}()
		m, err := carry(half)
		close(stop)
		if err := errors.Join(err, <-done); err != nil {
			return err
		}
		flooded = append(flooded, (float64(arrived()-was)-own*m)/time.Since(begun).Seconds()/1e3)
		calm, stormy, kept = append(calm, n), append(stormy, m), append(kept, 100*m/n)
	}
	_, a := least(calm)
	_, b := least(stormy)
	low, k := least(kept)
	slow, f := least(flooded)
	_, out := least(sent)
	fmt.Printf("| %s | %.1f | %.1f | %.1f | %.0f %% | %.0f %% | %.0f | %.0f | %.0f |\n", r.name, full/1e6, a/1e6, b/1e6, k, low, out, f, slow)
	return nil
}

func selfSigned() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, nil
}
