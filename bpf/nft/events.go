package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/yumen-zt/yumen/bpf"
)

// Numbers of nfnetlink_log (linux/netfilter/nfnetlink_log.h).
const (
	logPacket  = unix.NFNL_SUBSYS_ULOG << 8
	logConfig  = unix.NFNL_SUBSYS_ULOG<<8 | 1
	cfgCommand = 1
	cfgMode    = 2
	cfgTimeout = 4 // 1/100 s
	bindGroup  = 1
	copyPacket = 2
	attrBody   = 9
	attrPrefix = 10
)

// Counters returns how many packets had each verdict since the tables were made.
func (g *Guard) Counters() (c bpf.Counters, err error) {
	g.mu.Lock()
	loaded := g.loaded
	g.mu.Unlock()
	for f := range g.own {
		for v := range g.own[f] {
			c[f][v] = g.own[f][v].Load()
		}
	}
	if !loaded {
		return c, nil
	}
	for _, family := range []uint8{inet, netdev} {
		err = errors.Join(err, g.nl.counters(family, g.table(), func(name string, n uint64) {
			var f, v int
			if k, _ := fmt.Sscanf(name, "c%d_%d", &f, &v); k == 2 && f >= 0 && f < len(c) && v > 0 && v < len(c[0]) {
				c[f][v] += n
			}
		}))
	}
	if err != nil {
		return c, fmt.Errorf("read guard counters: %w", err)
	}
	return c, nil
}

// Run tells of knocks and sampled drops, opens what first packets show tokens
// for, and keeps an unconfirmed guard alive, until ctx is done. Either function
// may be nil; each is called by one goroutine.
func (g *Guard) Run(ctx context.Context, onKnock func(bpf.Knock), onDrop func(bpf.Drop)) error {
	var group errgroup.Group
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dropped := make(chan bpf.Drop, 256) // of both readers, for one goroutine; full: a sample less
	read := func(samples bool, take func(prefix string, packet []byte)) error {
		f, err := listen(g.group(samples))
		if err != nil {
			return fmt.Errorf("read guard events: %w (nfnetlink_log is needed, and that no other gateway runs in this network namespace)", err)
		}
		stop := context.AfterFunc(ctx, func() { f.Close() })
		group.Go(func() error {
			defer cancel()
			defer stop()
			defer f.Close()
			b := make([]byte, 128<<10)
			for {
				n, err := f.Read(b)
				switch {
				case errors.Is(err, os.ErrClosed):
					return nil
				case errors.Is(err, unix.ENOBUFS):
					g.own[bpf.IPv4][bpf.DropKnockLost].Add(1)
					continue
				case err != nil:
					return fmt.Errorf("read guard events: %w", err)
				}
				messages(b[:n], func(kind uint16, _ uint32, body []byte) {
					if kind != logPacket || len(body) < 4 {
						return
					}
					var prefix string
					var packet []byte
					attributes(body[4:], func(kind uint16, v []byte) {
						switch kind {
						case attrPrefix:
							prefix = string(v[:max(len(v)-1, 0)])
						case attrBody:
							packet = v
						}
					})
					take(prefix, packet)
				})
			}
		})
		return nil
	}
	tell := func(d bpf.Drop) {
		select {
		case dropped <- d:
		default:
		}
	}
	err := read(false, func(_ string, b []byte) {
		p, ok := parse(b)
		if !ok {
			return
		}
		v := g.first(&p, onKnock)
		g.own[p.family][v].Add(1)
		if !v.Passed() && v != bpf.TakeKnock {
			tell(p.drop(v, 1))
		}
	})
	if err == nil {
		err = read(true, func(prefix string, b []byte) {
			v, err := strconv.ParseUint(prefix, 10, 8)
			g.samples.Add(1)
			if p, ok := parse(b); err == nil && (ok || p.source.IsValid()) {
				tell(p.drop(bpf.Verdict(v), max(g.weight.Load(), 1)))
			}
		})
	}
	if err != nil {
		cancel()
		return errors.Join(err, group.Wait())
	}
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case d := <-dropped:
				if onDrop != nil {
					onDrop(d)
				}
			}
		}
	})
	group.Go(func() error { g.tend(ctx); return nil })
	return group.Wait()
}

// tend renews the lease and weighs samples, each second.
func (g *Guard) tend(ctx context.Context) {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	var drops, samples uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-second.C:
		}
		if err := g.renew(); err != nil {
			g.log.Error("guard not renewed", zap.Error(err))
		}
		c, err := g.Counters()
		if err != nil {
			continue // the metric fails, too, and says so
		}
		d, s := c.Dropped(), g.samples.Load()
		if d >= drops {
			g.weight.Store(uint32(min((d-drops)/max(s-samples, 1), 1<<31)))
		}
		drops, samples = d, s
	}
}

// listen binds to a group of nfnetlink_log.
func listen(group uint16) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20) // what is allowed
	}
	mode := append(binary.BigEndian.AppendUint32(nil, 2048), copyPacket, 0)
	for i, a := range []struct {
		kind  uint16
		value []byte
	}{{cfgCommand, []byte{bindGroup}}, {cfgMode, mode}, {cfgTimeout, binary.BigEndian.AppendUint32(nil, 10)}} {
		b := appendMessage(nil, logConfig, unix.NLM_F_ACK, uint32(i+1), unix.AF_UNSPEC, group, func(b []byte) []byte { return appendAttribute(b, a.kind, a.value) })
		if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			unix.Close(fd)
			return nil, err
		}
		answer := make([]byte, 4096)
		n, _, err := unix.Recvfrom(fd, answer, 0) // the kernel has answered already
		if err == nil {
			messages(answer[:n], func(kind uint16, _ uint32, body []byte) {
				if kind == unix.NLMSG_ERROR && len(body) >= 4 {
					if e := -int32(binary.NativeEndian.Uint32(body)); e != 0 {
						err = os.NewSyscallError("nfnetlink_log", unix.Errno(e))
					}
				}
			})
		}
		if err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return os.NewFile(uintptr(fd), "nfnetlink_log"), nil
}

// packet is one as the kernel logged it.
type packet struct {
	family         bpf.Family
	source         netip.Addr
	protocol       uint8
	from, port     uint16
	payload        []byte
	length, header int
}

func (p *packet) drop(v bpf.Verdict, weight uint32) bpf.Drop {
	return bpf.Drop{
		Source: netip.AddrPortFrom(p.source, p.from), Port: p.port, Protocol: p.protocol, Family: p.family, Verdict: v, Weight: weight, Length: uint32(p.length),
	}
}

// parse reads a packet from its IP header on; ok: with ports and payload.
func parse(b []byte) (p packet, ok bool) {
	if len(b) < 20 {
		return p, false
	}
	switch b[0] >> 4 {
	case 4:
		n := int(b[0]&15) * 4
		p.family, p.source, p.protocol, p.length = bpf.IPv4, netip.AddrFrom4([4]byte(b[12:])), b[9], int(binary.BigEndian.Uint16(b[2:]))
		if n < 20 || n > len(b) || p.length < n {
			return p, false
		}
		b = b[n:min(p.length, len(b))]
	case 6:
		if len(b) < 40 {
			return p, false
		}
		p.family, p.source, p.protocol, p.length = bpf.IPv6, netip.AddrFrom16([16]byte(b[8:])), b[6], 40+int(binary.BigEndian.Uint16(b[4:]))
		b = b[40:min(p.length, len(b))]
		for range 6 {
			if p.protocol != 0 && p.protocol != 43 && p.protocol != 60 {
				break
			}
			if len(b) < 8 || len(b) < (int(b[1])+1)*8 {
				return p, false
			}
			p.protocol, b = b[0], b[(int(b[1])+1)*8:]
		}
	default:
		return p, false
	}
	switch {
	case p.protocol == 17 && len(b) >= 8:
		p.header = 8
		if n := int(binary.BigEndian.Uint16(b[4:])); n >= 8 && n <= len(b) {
			b = b[:n]
		}
	case p.protocol == 6 && len(b) >= 20:
		p.header = int(b[12]>>4) * 4
	default:
		return p, false
	}
	p.from, p.port = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if p.header < 8 || p.header > len(b) {
		return p, false
	}
	p.payload = b[p.header:]
	return p, true
}

// first judges a packet that may show a permit: a knock, or the first of a flow
// or connection, which is let in when it comes again.
func (g *Guard) first(p *packet, onKnock func(bpf.Knock)) bpf.Verdict {
	g.mu.Lock()
	knock := p.protocol == 17 && p.port == g.cfg.KnockPort
	token := p.payload
	switch {
	case knock && len(token) > maxKnock:
		g.mu.Unlock()
		return bpf.DropUnauthorized
	case !knock && p.protocol == 17:
		token = token[max(len(token)-tokenBytes, 0):]
	}
	v := g.check(token, p.port, p.protocol)
	if v != bpf.PassToken {
		g.mu.Unlock()
		return v
	}
	alias := [8]byte(token)
	if !knock {
		d := g.cfg.FlowIdle
		if p.protocol == 6 {
			d = g.cfg.SYNOpen
		}
		err := g.open(opening{p.source, p.from, p.port, p.protocol}, alias, d)
		g.mu.Unlock()
		if err != nil {
			g.log.Error("flow not opened", zap.Error(err))
			return bpf.DropTicketRate
		}
		return v
	}
	g.mu.Unlock()
	g.knocks.Add(1)
	if onKnock != nil {
		onKnock(bpf.Knock{Alias: alias, Source: netip.AddrPortFrom(p.source, p.from), Data: p.payload})
	}
	return bpf.TakeKnock
}
