package testbed

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"time"
)

// Curl runs curl against a host of the site over IPv4 or IPv6 and returns its
// standard output.
func (s *Site) Curl(ctx context.Context, v6 bool, host string, args ...string) (string, error) {
	at := fmt.Sprintf("%s:%d:127.0.0.1", host, s.Port)
	if v6 {
		at = fmt.Sprintf("%s:%d:[::1]", host, s.Port)
	}
	words := append([]string{"--silent", "--show-error", "--noproxy", "*", "--max-time", "120", "--cacert", s.CAFile, "--resolve", at}, args...)
	cmd := exec.CommandContext(ctx, "curl", words...)
	cmd.WaitDelay = 5 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("curl %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

// SOCKSError is a refusal by a SOCKS5 server (RFC 1928 §6).
type SOCKSError struct{ Code byte }

// Error names the code.
func (e *SOCKSError) Error() string { return fmt.Sprintf("SOCKS5 reply %d", e.Code) }

// DialSOCKS connects to target through the SOCKS5 server, command CONNECT.
func DialSOCKS(ctx context.Context, server, target string) (net.Conn, error) {
	c, _, err := socks(ctx, server, 1, target)
	return c, err
}

// socks does a request of RFC 1928 and returns the bound address of the reply.
func socks(ctx context.Context, server string, command byte, target string) (_ net.Conn, bound netip.AddrPort, err error) {
	c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, bound, err
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		return nil, bound, err
	}
	address, err := socksAddress(target)
	if err != nil {
		return nil, bound, err
	}
	if _, err := c.Write(append([]byte{5, 1, 0, 5, command, 0}, address...)); err != nil {
		return nil, bound, err
	}
	head := make([]byte, 2+4)
	if _, err := io.ReadFull(c, head); err != nil {
		return nil, bound, err
	}
	if head[0] != 5 || head[1] != 0 || head[2] != 5 {
		return nil, bound, fmt.Errorf("SOCKS5 greeting % x", head)
	}
	n := map[byte]int{1: 4, 4: 16}[head[5]]
	if n == 0 {
		return nil, bound, fmt.Errorf("SOCKS5 address type %d", head[5])
	}
	rest := make([]byte, n+2)
	if _, err := io.ReadFull(c, rest); err != nil {
		return nil, bound, err
	}
	if head[3] != 0 {
		return nil, bound, &SOCKSError{head[3]}
	}
	ip, _ := netip.AddrFromSlice(rest[:n])
	return c, netip.AddrPortFrom(ip, binary.BigEndian.Uint16(rest[n:])), c.SetDeadline(time.Time{})
}

func socksAddress(target string) ([]byte, error) {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return nil, err
	}
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		return nil, err
	}
	var b []byte
	if ip, err := netip.ParseAddr(host); err != nil {
		b = append([]byte{3, byte(len(host))}, host...)
	} else if ip.Is4() {
		b = append([]byte{1}, ip.AsSlice()...)
	} else {
		b = append([]byte{4}, ip.AsSlice()...)
	}
	return binary.BigEndian.AppendUint16(b, uint16(n)), nil
}

// Association is a UDP ASSOCIATE with one destination.
type Association struct {
	Control net.Conn // the association lives as long as it
	pc      *net.UDPConn
	head    []byte
}

// AssociateSOCKS opens an association for datagrams to target.
func AssociateSOCKS(ctx context.Context, server, target string) (*Association, error) {
	head, err := socksAddress(target)
	if err != nil {
		return nil, err
	}
	unspecified := "0.0.0.0:0"
	if strings.HasPrefix(server, "[") {
		unspecified = "[::]:0"
	}
	c, bound, err := socks(ctx, server, 3, unspecified)
	if err != nil {
		return nil, err
	}
	pc, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(bound))
	if err != nil {
		c.Close()
		return nil, err
	}
	return &Association{c, pc, append([]byte{0, 0, 0}, head...)}, nil
}

// Send sends one datagram.
func (a *Association) Send(b []byte) error {
	_, err := a.pc.Write(append(append([]byte(nil), a.head...), b...))
	return err
}

// Receive returns the next datagram, or an error after limit.
func (a *Association) Receive(limit time.Duration) ([]byte, error) {
	if err := a.pc.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	buf := make([]byte, 65535)
	n, err := a.pc.Read(buf)
	if err != nil {
		return nil, err
	}
	if n < 4 {
		return nil, errors.New("short SOCKS5 datagram")
	}
	skip := 4 + map[byte]int{1: 6, 4: 18}[buf[3]]
	if buf[3] == 3 {
		skip = 7 + int(buf[4])
	}
	if n < skip {
		return nil, errors.New("short SOCKS5 datagram")
	}
	return buf[skip:n], nil
}

// Close ends the association.
func (a *Association) Close() { a.pc.Close(); a.Control.Close() }
