//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"github.com/yumen-zt/yumen/crypto/tlcp"
)

const handshakesInRound = 150 // of each kind, in turns

type shaker interface {
	net.Conn
	HandshakeContext(context.Context) error
}

// handshakes measures the server's CPU time of handshakes.
type handshakes struct {
	on       cores
	kinds    []handshakeKind // the last is TLS 1.3, which the others are compared with
	results  []*row
	absolute []*row
}

type handshakeKind struct {
	server, client func(net.Conn) shaker
	resumed        bool
}

func newHandshakes(m *material, on cores) *handshakes {
	again := m.tlcpServer.Clone()
	again.SessionCache = tlcp.NewLRUSessionCache(16)
	againClient := m.tlcpClient.Clone()
	againClient.SessionCache = tlcp.NewLRUSessionCache(16)
	return &handshakes{
		on: on,
		kinds: []handshakeKind{
			{func(c net.Conn) shaker { return tlcp.Server(c, m.tlcpServer) }, func(c net.Conn) shaker { return tlcp.Client(c, m.tlcpClient) }, false},
			{func(c net.Conn) shaker { return tlcp.Server(c, again) }, func(c net.Conn) shaker { return tlcp.Client(c, againClient) }, true},
			{func(c net.Conn) shaker { return tls.Server(c, m.tlsServer) }, func(c net.Conn) shaker { return tls.Client(c, m.tlsClient) }, false},
		},
		results: []*row{
			{name: "full handshake E053, server CPU / Go TLS 1.3 with P-256", goal: 0.9},
			{name: "resumed handshake E053, server CPU / Go TLS 1.3 full", goal: 0.35},
		},
		absolute: []*row{
			{name: "full handshake E053, server CPU", unit: " µs", none: true},
			{name: "resumed handshake E053, server CPU", unit: " µs", none: true},
			{name: "full handshake Go TLS 1.3 P-256, server CPU", unit: " µs", none: true},
		},
	}
}

func (h *handshakes) rows() []*row { return append(append([]*row{}, h.results...), h.absolute...) }
func (h *handshakes) close()       {}

func (h *handshakes) round() error {
	work, answers := make(chan *clientJob), make(chan error)
	go func() { // the client, on its own core
		err := pin(h.on.client)
		for j := range work {
			if err == nil {
				answers <- j.kind.client(j.conn).HandshakeContext(context.Background())
			} else {
				answers <- err
			}
		}
	}()
	costs := make(chan result, 1)
	go func() { // the server; its thread ends with it, and with it the pinning
		defer close(work)
		total := make([]time.Duration, len(h.kinds))
		err := pin(h.on.server)
		for i := 0; err == nil && i < handshakesInRound; i++ {
			for k := range h.kinds {
				var cost time.Duration
				if cost, err = h.once(&h.kinds[k], work, answers, len(h.absolute[0].values) > 0 || i > 0); err != nil {
					break
				}
				total[k] += cost
			}
		}
		costs <- result{total, err}
	}()
	r := <-costs
	if r.err != nil {
		return r.err
	}
	theirs := r.total[len(r.total)-1].Seconds()
	for i, x := range h.results {
		x.add(r.total[i].Seconds() / theirs)
	}
	for i, x := range h.absolute {
		x.add(r.total[i].Seconds() * 1e6 / handshakesInRound)
	}
	return nil
}

type clientJob struct {
	kind *handshakeKind
	conn net.Conn
}

type result struct {
	total []time.Duration
	err   error
}

// once returns the cost of one handshake for the calling thread, the server's.
// warm says that a session is there to be resumed.
func (h *handshakes) once(k *handshakeKind, work chan<- *clientJob, answers <-chan error, warm bool) (time.Duration, error) {
	s, c, err := sockets()
	if err != nil {
		return 0, err
	}
	defer s.Close()
	defer c.Close()
	work <- &clientJob{k, c}
	server := k.server(s)
	start := threadCPU()
	err = server.HandshakeContext(context.Background())
	cost := threadCPU() - start
	if err = errors.Join(err, <-answers); err != nil {
		return 0, err
	}
	if t, ok := server.(*tlcp.Conn); ok && warm && t.ConnectionState().DidResume != k.resumed {
		return 0, errors.New("a handshake that should be resumed was not, or the other way")
	}
	return cost, nil
}
