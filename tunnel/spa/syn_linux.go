package spa

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dialSYN connects to to with token as the payload of the SYN, by TCP Fast Open
// without a cookie (RFC 7413 has one; the token takes its place). The far end's
// stack need not know Fast Open: what it does not acknowledge in the SYN comes
// again behind the handshake. So the first bytes of the stream are the token.
//
// The kernel sends a SYN that is lost again without its payload, which a guard
// drops: one attempt is one SYN.
func dialSYN(ctx context.Context, d net.Dialer, to netip.AddrPort, token []byte) (net.Conn, error) {
	d.SetMultipathTCP(false)
	d.Control = func(_, _ string, raw syscall.RawConn) error {
		var err error
		e := raw.Control(func(fd uintptr) {
			for _, o := range []int{unix.TCP_FASTOPEN_CONNECT, unix.TCP_FASTOPEN_NO_COOKIE} {
				if err == nil {
					err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, o, 1))
				}
			}
		})
		if err != nil {
			return fmt.Errorf("put a token into a SYN: %w (net.ipv4.tcp_fastopen must have bit 1): %w", errors.ErrUnsupported, err)
		}
		return e
	}
	c, err := d.DialContext(ctx, "tcp", to.String()) // sends nothing yet
	if err != nil {
		return nil, err
	}
	if err := sendSYN(ctx, c.(*net.TCPConn), token); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// sendSYN writes token, which sends the SYN, and waits for its answer.
func sendSYN(ctx context.Context, c *net.TCPConn, token []byte) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetWriteDeadline(deadline); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.Write(token); err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var fault error
	err = raw.Write(func(fd uintptr) bool {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		switch {
		case err != nil:
			fault = os.NewSyscallError("getsockopt", err)
		case info.State == unix.BPF_TCP_SYN_SENT:
			return false
		case info.State == unix.BPF_TCP_CLOSE:
			n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
			if fault = os.NewSyscallError("connect", syscall.Errno(n)); n == 0 || err != nil {
				fault = errors.New("connect: closed")
			}
		}
		return true
	})
	if err != nil {
		return err // a *net.OpError, which knows of a timeout
	}
	if fault != nil {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: c.RemoteAddr(), Err: fault}
	}
	if !stop() {
		return context.Cause(ctx)
	}
	return c.SetWriteDeadline(time.Time{})
}
