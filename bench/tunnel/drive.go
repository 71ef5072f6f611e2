//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"
)

// result is one measurement, as a line of JSON from the driver.
type result struct {
	Kind    string  `json:"kind"` // bulk, rtt
	Subject string  `json:"subject"`
	Seconds float64 `json:"seconds"` // bulk: of wall time for MiB; rtt: the median of one
	P99     float64 `json:"p99"`
	MiB     int64   `json:"mib"`
	TX      float64 `json:"tx"` // CPU seconds of the sending side
	RX      float64 `json:"rx"`
}

// driver is the near end.
type driver struct {
	control net.Conn
	open    map[string]shared
	out     *os.File
}

// drive measures each subject rounds times, in turn.
func drive(dir, server string, names []string, o options, warm bool) error {
	e, err := openEnd(dir, "agent")
	if err != nil {
		return err
	}
	d := &driver{open: map[string]shared{}, out: os.Stdout}
	if d.control, err = net.Dial("tcp", net.JoinHostPort(server, fmt.Sprint(controlPort))); err != nil {
		return err
	}
	for _, name := range names {
		put, share := subject(name)
		c, err := net.Dial("tcp", net.JoinHostPort(server, portOf(name)))
		if err != nil {
			return err
		}
		k, err := put(context.Background(), c, e, false)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if d.open[name], err = share.client(k); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for r := range o.rounds + 1 {
		if r == 0 && !warm {
			continue
		}
		parts := slicesOf
		if r == 0 {
			parts = 1 // the first round warms
		}
		all := map[string]*result{}
		for part := range parts {
			order := slices.Clone(names)
			if (r+part)%2 == 1 {
				slices.Reverse(order)
			}
			for _, name := range order {
				if err := d.part(name, int64(o.mib)<<20/slicesOf, all); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
		for _, name := range names {
			if all[name] != nil {
				all[name].MiB = int64(o.mib)
				if err := d.say(all[name], r > 0); err != nil {
					return err
				}
			}
			if err := d.trips(name, o.trips, r > 0); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// slicesOf is how many parts the bytes of a round are moved in, the subjects by
// turns: whoever else uses the machine troubles all alike.
const slicesOf = 8

// part moves n bytes and adds what that took.
func (d *driver) part(name string, n int64, all map[string]*result) error {
	if n == 0 {
		return nil
	}
	c, err := d.open[name].open(context.Background())
	if err != nil {
		return err
	}
	defer c.Close()
	r, err := d.bulk(c, n)
	if err != nil {
		return err
	}
	r.Subject = name
	if sum := all[name]; sum != nil {
		r.Seconds, r.TX, r.RX = r.Seconds+sum.Seconds, r.TX+sum.TX, r.RX+sum.RX
	}
	all[name] = r
	return nil
}

func (d *driver) trips(name string, n int, say bool) error {
	if n == 0 {
		return nil
	}
	if !say {
		n /= 4
	}
	c, err := d.open[name].open(context.Background())
	if err != nil {
		return err
	}
	defer c.Close()
	r, err := roundTrips(c, n)
	if err != nil {
		return err
	}
	r.Subject = name
	return d.say(r, say)
}

func (d *driver) say(r *result, say bool) error {
	if !say {
		return nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = d.out.Write(append(b, '\n'))
	return err
}

func (d *driver) serverCPU() (int64, error) {
	var b [8]byte
	if _, err := d.control.Write(b[:1]); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(d.control, b[:])
	return int64(binary.BigEndian.Uint64(b[:])), err
}

func (d *driver) bulk(c net.Conn, n int64) (*result, error) {
	far, err := d.serverCPU()
	if err != nil {
		return nil, err
	}
	near, began := ownCPU(), time.Now()
	if err := say(c, 'b', n); err != nil {
		return nil, err
	}
	if err := pour(c, n); err != nil {
		return nil, err
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return nil, err
	}
	took := time.Since(began).Seconds()
	near = ownCPU() - near
	after, err := d.serverCPU()
	return &result{Kind: "bulk", Seconds: took, TX: float64(near) / 1e9, RX: float64(after-far) / 1e9}, err
}

func say(c net.Conn, what byte, n int64) error {
	var h [9]byte
	h[0] = what
	binary.BigEndian.PutUint64(h[1:], uint64(n))
	_, err := c.Write(h[:])
	return err
}

func roundTrips(c net.Conn, n int) (*result, error) {
	if err := say(c, 'p', int64(n)); err != nil {
		return nil, err
	}
	b, took := make([]byte, small), make([]float64, 0, n)
	for range n {
		began := time.Now()
		if _, err := c.Write(b); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began).Seconds())
	}
	slices.Sort(took)
	return &result{Kind: "rtt", Seconds: took[n/2], P99: took[n*99/100]}, nil
}
