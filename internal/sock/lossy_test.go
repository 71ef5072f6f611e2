package sock

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
)

func TestWithoutAWayDatagramsAreLost(t *testing.T) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	away := &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 9} // not from the loopback address
	if _, err := c.WriteTo([]byte("x"), away); err == nil {
		t.Skip("this system sends from its loopback address")
	}
	var from atomic.Bool
	l := Lossy(c, &from)
	if _, err := l.WriteTo([]byte("x"), away); err == nil {
		t.Error("an error was swallowed too early")
	}
	from.Store(true)
	_, err = l.WriteTo([]byte("x"), away)
	n, _, err2 := l.(udp).WriteMsgUDP([]byte("xy"), nil, away)
	if _, raw := c.WriteTo([]byte("x"), away); NoWay(raw) && (err != nil || err2 != nil || n != 2) {
		t.Errorf("%v, %d %v: want them lost", err, n, err2)
	}
	if _, _, err := l.(udp).WriteMsgUDP(make([]byte, 70_000), nil, c.LocalAddr().(*net.UDPAddr)); err == nil {
		t.Error("a datagram that is too long was taken")
	}
	if !NoWay(&net.OpError{Op: "write", Err: syscall.ENETUNREACH}) || NoWay(errors.New("other")) || NoWay(net.ErrClosed) {
		t.Error("NoWay")
	}
	b := make([]byte, 9)
	if _, err := l.WriteTo([]byte("here"), c.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if n, _, err := l.ReadFrom(b); err != nil || string(b[:n]) != "here" {
		t.Errorf("read %q, %v", b[:n], err)
	}
}
