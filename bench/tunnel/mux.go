//go:build linux

package main

import (
	"context"
	"errors"
	"net"

	"github.com/hashicorp/yamux"
	"github.com/xtaci/smux"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/tunnel/mux"
)

// shared is the client's end of what shares a carrier.
type shared interface {
	open(ctx context.Context) (net.Conn, error)
}

// sharing is one way to share a carrier. serve calls each for every stream and
// returns when the carrier ends.
type sharing struct {
	client func(c net.Conn) (shared, error)
	serve  func(c net.Conn, each func(net.Conn)) error
}

var muxes = map[string]sharing{
	"": {
		client: func(c net.Conn) (shared, error) { return &alone{c}, nil },
		serve:  func(c net.Conn, each func(net.Conn)) error { each(c); return nil },
	},
	"mux": {
		client: func(c net.Conn) (shared, error) {
			s := mux.Client(c, mux.Config{Handler: ours{}})
			go func() { _ = s.Run(context.Background()) }()
			return ours{s: s}, nil
		},
		serve: func(c net.Conn, each func(net.Conn)) error {
			s := mux.Server(c, mux.Config{Handler: ours{each: each}})
			s.Establish()
			return s.Run(context.Background())
		},
	},
	"yamux": {
		client: func(c net.Conn) (shared, error) {
			s, err := yamux.Client(c, yamuxConfig())
			return yam{s}, err
		},
		serve: func(c net.Conn, each func(net.Conn)) error {
			s, err := yamux.Server(c, yamuxConfig())
			if err != nil {
				return err
			}
			for {
				st, err := s.AcceptStream()
				if err != nil {
					return err
				}
				go each(st)
			}
		},
	},
	"smux": {
		client: func(c net.Conn) (shared, error) {
			s, err := smux.Client(c, smuxConfig())
			return sm{s}, err
		},
		serve: func(c net.Conn, each func(net.Conn)) error {
			s, err := smux.Server(c, smuxConfig())
			if err != nil {
				return err
			}
			for {
				st, err := s.AcceptStream()
				if err != nil {
					return err
				}
				go each(st)
			}
		},
	},
}

// window is what a stream of each may have under way: the default of ours.
const window = 1 << 20

// yamuxConfig is the default, but for the window, which is a quarter of it.
func yamuxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.MaxStreamWindowSize = window
	return c
}

// smuxConfig is version 2, which has credit for each stream as ours and yamux
// have.
func smuxConfig() *smux.Config {
	c := smux.DefaultConfig()
	c.Version = 2
	c.MaxReceiveBuffer, c.MaxStreamBuffer = 16<<20, window
	return c
}

// alone gives the carrier itself as its one stream.
type alone struct{ c net.Conn }

func (a *alone) open(context.Context) (net.Conn, error) { return keep{a.c}, nil }

// keep leaves the carrier open when a stream is done with it.
type keep struct{ net.Conn }

// Close does nothing.
func (keep) Close() error { return nil }

type ours struct {
	s    *mux.Session
	each func(net.Conn)
}

func (o ours) open(ctx context.Context) (net.Conn, error) {
	f, err := o.s.Start(false, nil)
	if err != nil {
		return nil, err
	}
	if _, err := f.Wait(ctx); err != nil {
		return nil, err
	}
	return f, nil
}

// Open implements [mux.Handler].
func (o ours) Open(f *mux.Flow, _ []byte) {
	go func() {
		if f.Accept(nil) == nil {
			o.each(f)
		}
		f.Close()
	}()
}

// Message implements [mux.Handler].
func (ours) Message([]byte) reason.Reason { return reason.OK }

type yam struct{ s *yamux.Session }

func (y yam) open(context.Context) (net.Conn, error) { return y.s.OpenStream() }

type sm struct{ s *smux.Session }

func (s sm) open(context.Context) (net.Conn, error) { return s.s.OpenStream() }

var errShort = errors.New("the other end ended early")
