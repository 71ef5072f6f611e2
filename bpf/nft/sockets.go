package nft

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// keepSockets notes the TCP connections that there are: conntrack has not seen
// them begin, and the SSH session of whoever switches the guard on is one of
// them. The caller holds mu.
func (g *Guard) keepSockets() error {
	var b batch
	for _, name := range []string{"tcp", "tcp6"} {
		f, err := os.Open("/proc/thread-self/net/" + name) // of this thread's network namespace
		if err != nil {
			if name == "tcp6" && os.IsNotExist(err) {
				continue
			}
			return fmt.Errorf("read connections: %w", err)
		}
		in := bufio.NewScanner(f)
		for in.Scan() {
			local, remote, ok := connection(in.Text())
			if !ok {
				continue
			}
			key := slices.Concat(remote.Addr().AsSlice(), binary.BigEndian.AppendUint16(nil, remote.Port()), []byte{0, 0}, binary.BigEndian.AppendUint16(nil, local.Port()), []byte{0, 0})
			set := "before6"
			if remote.Addr().Is4() {
				set = "before4"
			}
			b.add(inet, g.table(), set, element{key: key})
		}
		err = in.Err()
		f.Close()
		if err != nil {
			return fmt.Errorf("read connections: %w", err)
		}
	}
	if err := g.nl.commit(&b); err != nil {
		return fmt.Errorf("keep connections: %w", err)
	}
	return nil
}

// connection reads a line of /proc/net/tcp; ok: it is no listener.
func connection(line string) (local, remote netip.AddrPort, ok bool) {
	f := strings.Fields(line)
	if len(f) < 4 || f[3] == "0A" || f[3] == "st" {
		return local, remote, false
	}
	local, ok1 := endpoint(f[1])
	remote, ok2 := endpoint(f[2])
	return local, remote, ok1 && ok2
}

// endpoint reads an address of words in host order, and a port.
func endpoint(s string) (netip.AddrPort, bool) {
	a, p, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(a)
	port, err2 := strconv.ParseUint(p, 16, 16)
	if err != nil || err2 != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	addr, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), ok
}

// recall reads what the tables of a pinned guard deny. The caller is Open.
func (g *Guard) recall() error {
	for i, set := range []string{"deny4", "deny6"} {
		all, err := g.nl.elements(netdev, g.table(), set)
		if err != nil {
			return explain("read", err)
		}
		for _, e := range all {
			if a, ok := netip.AddrFromSlice(e.key); ok {
				g.denied[netip.PrefixFrom(a, 32+32*i)] = struct{}{}
			}
		}
		g.merged[i] = []span{{}} // not known: the next list replaces them
	}
	return nil
}
