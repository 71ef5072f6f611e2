package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/yumen-zt/yumen/internal/adminsock"
	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/audit"
)

// An upgrade loses no connection. The new process builds what it can, asks the
// admin socket of the old one, and goes on with its listening sockets:
//
//	new process                       old process
//	keys, configuration  ─ask──▶
//	                                  0 tells HTTP/3 clients to go away, closes their connections
//	                                  1 accepts no more: what comes waits in the kernel
//	                                  2 closes the links, the outbox, the state folder;
//	                                    its audit records go to the new process from here on
//	opens the state      ◀─sockets──  3 hands over the listening sockets
//	accepts
//	                                  4 lets handshakes end, 200 ms, then drains and ends
//
// Until it has drained, for proxy.limits.drain at most, the old process hears of
// every right that ends from the new one: notices.go.

const (
	takeOverPath  = "/takeover"
	takeOverLimit = 30 * time.Second       // for the old process to let go
	afterGlow     = 200 * time.Millisecond // for the first request on a connection that was accepted
	leaveQUIC     = 300 * time.Millisecond // for HTTP/3 requests in flight; TCP is accepted meanwhile
	maxSockets    = 64
)

// offer is the line that goes with the sockets, in their order.
type offer struct {
	Listen []string `json:"listen"`
}

// adminTakeOver passes the caller's connection to Run.
func (g *Gateway) adminTakeOver(w http.ResponseWriter, r *http.Request) {
	g.auditAdmin(r, "take over", "", nil)
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		adminsock.Refuse(w, http.StatusInternalServerError, fmt.Errorf("take over: %w", err))
		return
	}
	u, ok := c.(*net.UnixConn)
	if ok {
		_ = u.SetDeadline(time.Time{}) // those of the server that it came by
		select {
		case g.taken <- u:
			return
		default: // another one was faster
		}
	}
	_, _ = io.WriteString(c, "HTTP/1.1 409 Conflict\r\n\r\n") // the caller sees that it is no offer
	c.Close()
}

// later is a writer whose first Write waits until it is opened.
type later struct {
	*net.UnixConn
	open chan struct{}
}

func (l later) Write(b []byte) (int, error) {
	<-l.open
	return l.UnixConn.Write(b)
}

// handOver is steps 1 to 4 of the old process. stop ends what the new process
// must have for itself, and waits for its end.
func (g *Gateway) handOver(c *net.UnixConn, stop func() error) error {
	start := g.now()
	opened := make(chan struct{})
	open := sync.OnceFunc(func() { close(opened) })
	defer open() // after an error, too: nobody waits
	out := later{c, opened}
	g.heir.Store(&out) // what is learned from here on is the new one's to tell
	if g.alerts.up.Load() != nil {
		var up alert.Sink = heirAlerts{out}
		g.alerts.up.Store(&up)
	}
	var o offer
	var rights []int
	for i, ln := range g.listeners {
		f, err := ln.(*net.TCPListener).File()
		if err != nil {
			return fmt.Errorf("hand over %s: %w", ln.Addr(), err)
		}
		defer f.Close()
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { rights = append(rights, int(fd)) })
		}
		if err != nil {
			return fmt.Errorf("hand over %s: %w", ln.Addr(), err)
		}
		o.Listen = append(o.Listen, g.site.Load().cfg.Listen[i])
	}
	g.proxy.LeaveQUIC(leaveQUIC)
	g.port.StopAccepting() // 1
	err := stop()          // 2
	if g.link != nil {
		g.link.Close()
	}
	g.guard.close()
	err = errors.Join(err, g.revoked.close(), g.audit.HandOver(out), g.lock.Close())
	line, _ := json.Marshal(o)                                                           // strings alone
	_, _, werr := c.WriteMsgUnix(append(line, '\n'), syscall.UnixRights(rights...), nil) // 3
	open()
	g.heeding.Go(func() { g.obey(c) })
	g.log.Info("listening sockets handed over", zap.Strings("listen", o.Listen), zap.Duration("took", g.now().Sub(start)), zap.Error(errors.Join(err, werr)))
	g.port.Settle() // 4
	time.Sleep(afterGlow)
	return errors.Join(err, werr)
}

// inheritance is what a new process has of the one before it.
type inheritance struct {
	teller
	records   io.Reader // audit records of the old process, until it ends
	listeners map[string]net.Listener
}

// takeOver asks the gateway at socket for its listening sockets.
func takeOver(ctx context.Context, socket string) (*inheritance, error) {
	raw, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("take over from the gateway at %s: %w (is it running? start without --take-over)", socket, err)
	}
	in := &inheritance{teller: teller{conn: raw.(*net.UnixConn)}, listeners: map[string]net.Listener{}}
	if err := in.receive(); err != nil {
		in.close()
		return nil, fmt.Errorf("take over from the gateway at %s: %w", socket, err)
	}
	return in, nil
}

func (in *inheritance) receive() error {
	if err := in.conn.SetDeadline(time.Now().Add(takeOverLimit)); err != nil {
		return err
	}
	if _, err := io.WriteString(in.conn, "POST "+takeOverPath+" HTTP/1.1\r\nHost: local\r\nContent-Length: 0\r\n\r\n"); err != nil {
		return err
	}
	buf, oob := make([]byte, 64<<10), make([]byte, syscall.CmsgSpace(4*maxSockets))
	n, m, _, _, err := in.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return err
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	msgs, err := syscall.ParseSocketControlMessage(oob[:m])
	if err != nil {
		return err
	}
	for i := range msgs {
		fds, err := syscall.ParseUnixRights(&msgs[i])
		if err != nil {
			return err
		}
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "listener"))
		}
	}
	line, rest, _ := bytes.Cut(buf[:n], []byte("\n"))
	var o offer
	if err := json.Unmarshal(line, &o); err != nil || len(o.Listen) != len(files) || len(files) == 0 {
		return fmt.Errorf("it answered %.200q with %d sockets (is it a gateway of a version that can hand over, as the same user?)", strings.TrimSpace(string(line)), len(files))
	}
	for i, f := range files {
		ln, err := net.FileListener(f)
		if err != nil {
			return err
		}
		in.listeners[o.Listen[i]] = ln
	}
	in.records = bufio.NewReader(io.MultiReader(bytes.NewReader(bytes.Clone(rest)), in.conn))
	return in.conn.SetDeadline(time.Time{})
}

// listener returns the socket of an address, once, or nil.
func (in *inheritance) listener(address string) net.Listener {
	if in == nil {
		return nil
	}
	ln := in.listeners[address]
	delete(in.listeners, address)
	return ln
}

// close closes what nobody took.
func (in *inheritance) close() {
	if in == nil {
		return
	}
	for _, ln := range in.listeners {
		ln.Close()
	}
	in.conn.Close()
}

// lastRecords is how long the process before this one may take to end when this
// one must.
const lastRecords = 3 * time.Second

// adopt writes the audit records of the process before this one, until it has
// ended. The returned function waits for that; where this process was told to
// end, that one is, too. One that has been replaced itself waits for as long as
// the other one drains.
func (g *Gateway) adopt() (wait func()) {
	in := g.inherited
	if in == nil {
		return func() {}
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		n, err := audit.Adopt(in.records, g.audit, g.told)
		g.log.Info("the process before this one has ended", zap.Int("audit_records", n), zap.Error(err))
		in.close()
	})
	return func() {
		if !g.handing.Load() {
			in.hangUp()
			_ = in.conn.SetReadDeadline(time.Now().Add(lastRecords)) // it may have ended
		}
		reading.Wait()
	}
}
