package mux

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/yumen-zt/yumen/internal/reason"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// acceptor is a handler that accepts every flow and hands it over.
type acceptor struct {
	flows    chan *Flow
	messages chan string
	hold     bool // leave the answer to the test
	full     bool // refuse
}

func newAcceptor() *acceptor {
	return &acceptor{flows: make(chan *Flow, 4096), messages: make(chan string, 4096)}
}

func (a *acceptor) Open(f *Flow, payload []byte) {
	switch {
	case a.full:
		_ = f.Refuse(reason.AppNotGranted, []byte("no"))
		return
	case !a.hold:
		_ = f.Accept(append([]byte("yes "), payload...))
	}
	a.flows <- f
}

func (a *acceptor) Message(p []byte) reason.Reason {
	a.messages <- string(p)
	return reason.OK
}

// pair is an agent's and a gateway's end of one tunnel.
type pair struct {
	agent, gateway *Session
	ah, gh         *acceptor
	agentErr       error
	gatewayErr     error
	wg             sync.WaitGroup
}

func newPair(t testing.TB, a, b net.Conn, agent, gateway Config) *pair {
	p := &pair{ah: newAcceptor(), gh: newAcceptor()}
	agent.Handler, gateway.Handler = p.ah, p.gh
	p.agent, p.gateway = Client(a, agent), Server(b, gateway)
	p.gateway.Establish()
	p.wg.Go(func() { p.agentErr = p.agent.Run(context.Background()) })
	p.wg.Go(func() { p.gatewayErr = p.gateway.Run(context.Background()) })
	t.Cleanup(p.close)
	return p
}

func (p *pair) close() {
	p.agent.Close(reason.Shutdown)
	p.gateway.Close(reason.Shutdown)
	p.wg.Wait()
}

func memPair(t testing.TB, c Config) *pair {
	a, b := net.Pipe()
	return newPair(t, a, b, c, c)
}

func tcpConns(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			close(got)
			return
		}
		got <- c
	}()
	a, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, ok := <-got
	if !ok {
		t.Fatal("accept failed")
	}
	return a, b
}

func tcpPair(t testing.TB, c Config) *pair {
	a, b := tcpConns(t)
	return newPair(t, a, b, c, c)
}

// open returns both ends of a new flow.
func (p *pair) open(t testing.TB, datagrams bool) (agent, gateway *Flow) {
	t.Helper()
	f, err := p.agent.Start(datagrams, []byte("T12"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	reply, err := f.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if string(reply) != "yes T12" {
		t.Fatalf("reply %q", reply)
	}
	return f, <-p.gh.flows
}

func readAll(t testing.TB, f *Flow) string {
	t.Helper()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}
