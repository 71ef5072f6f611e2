package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Families of tables.
const (
	inet   uint8 = unix.NFPROTO_INET
	netdev uint8 = unix.NFPROTO_NETDEV
)

// conn is a netlink socket to netfilter. Its methods may be called from any
// goroutine.
type conn struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	c := &conn{fd: fd, buf: make([]byte, 64<<10)}
	err = errors.Join(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20) // large batches; the kernel may allow less
	return c, nil
}

func (c *conn) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}

// appendMessage appends one message: its header, nfgenmsg and what body appends.
func appendMessage(b []byte, kind, flags uint16, seq uint32, family uint8, resource uint16, body func([]byte) []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, unix.NLMSG_HDRLEN)...)
	b = append(b, family, 0)
	b = binary.BigEndian.AppendUint16(b, resource)
	if body != nil {
		b = body(b)
	}
	binary.NativeEndian.PutUint32(b[at:], uint32(len(b)-at))
	binary.NativeEndian.PutUint16(b[at+4:], kind)
	binary.NativeEndian.PutUint16(b[at+6:], flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[at+8:], seq)
	return b
}

// appendAttribute appends one attribute; its value is padded to 4 bytes.
func appendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}

func appendNest(b []byte, kind uint16, body func([]byte) []byte) []byte {
	at := len(b)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = body(b)
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
	binary.NativeEndian.PutUint16(b[at+2:], kind|unix.NLA_F_NESTED)
	return b
}

func text(s string) []byte { return append([]byte(s), 0) }

// hostOrder is v as the kernel's registers have it.
func hostOrder(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// attributes calls f for each attribute of b.
func attributes(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// element is one of a set.
type element struct {
	key     []byte
	end     bool          // of an interval: the first key behind it
	timeout time.Duration // 0: none
}

// batch is what is to be done in one transaction.
type batch struct {
	messages []func(b []byte, seq uint32, flags uint16) []byte
}

func (t *batch) put(kind, flags uint16, family uint8, body func([]byte) []byte) {
	t.messages = append(t.messages, func(b []byte, seq uint32, more uint16) []byte {
		return appendMessage(b, unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags|more, seq, family, 0, body)
	})
}

func (t *batch) addTable(family uint8, table string) {
	t.put(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, family, func(b []byte) []byte { return appendAttribute(b, unix.NFTA_TABLE_NAME, text(table)) })
}

func (t *batch) removeTable(family uint8, table string) {
	t.put(unix.NFT_MSG_DELTABLE, 0, family, func(b []byte) []byte { return appendAttribute(b, unix.NFTA_TABLE_NAME, text(table)) })
}

// maxElements of one message: an attribute holds 64 KiB.
const maxElements = 512

func (t *batch) add(family uint8, table, set string, all ...element) {
	t.change(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, family, table, set, all)
}

func (t *batch) remove(family uint8, table, set string, all ...element) {
	t.change(unix.NFT_MSG_DELSETELEM, 0, family, table, set, all)
}

// flush takes every element away.
func (t *batch) flush(family uint8, table, set string) {
	t.put(unix.NFT_MSG_DELSETELEM, 0, family, func(b []byte) []byte {
		b = appendAttribute(b, unix.NFTA_SET_ELEM_LIST_TABLE, text(table))
		return appendAttribute(b, unix.NFTA_SET_ELEM_LIST_SET, text(set))
	})
}

func (t *batch) change(kind, flags uint16, family uint8, table, set string, all []element) {
	for len(all) > 0 {
		part := all[:min(len(all), maxElements)]
		all = all[len(part):]
		t.put(kind, flags, family, func(b []byte) []byte {
			b = appendAttribute(b, unix.NFTA_SET_ELEM_LIST_TABLE, text(table))
			b = appendAttribute(b, unix.NFTA_SET_ELEM_LIST_SET, text(set))
			return appendNest(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(b []byte) []byte {
				for _, e := range part {
					b = appendNest(b, unix.NFTA_LIST_ELEM, e.append)
				}
				return b
			})
		})
	}
}

func (e element) append(b []byte) []byte {
	b = appendNest(b, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte { return appendAttribute(b, unix.NFTA_DATA_VALUE, e.key) })
	if e.end {
		b = appendAttribute(b, unix.NFTA_SET_ELEM_FLAGS, binary.BigEndian.AppendUint32(nil, unix.NFT_SET_ELEM_INTERVAL_END))
	}
	if e.timeout > 0 {
		b = appendAttribute(b, unix.NFTA_SET_ELEM_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(e.timeout.Milliseconds())))
	}
	return b
}

// commit puts all of t in force, or nothing of it.
func (c *conn) commit(t *batch) error {
	if len(t.messages) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	first := c.seq
	b := appendMessage(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, first, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	for i, m := range t.messages {
		c.seq++
		var flags uint16
		if i == len(t.messages)-1 {
			flags = unix.NLM_F_ACK
		}
		b = m(b, c.seq, flags)
	}
	last := c.seq
	c.seq++
	b = appendMessage(b, unix.NFNL_MSG_BATCH_END, 0, c.seq, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to nf_tables: %w", err)
	}
	var fault error
	for done := false; !done; {
		err := c.receive(func(kind uint16, seq uint32, body []byte) {
			if kind != unix.NLMSG_ERROR || len(body) < 4 || seq-first > last-first {
				return // of an earlier transaction
			}
			if e := -int32(binary.NativeEndian.Uint32(body)); e != 0 && fault == nil {
				fault = os.NewSyscallError("nf_tables", unix.Errno(e))
			}
			done = done || seq == last || seq == first
		})
		if err != nil {
			return errors.Join(fault, err)
		}
	}
	return fault
}

// receive reads once and calls f for each message.
func (c *conn) receive(f func(kind uint16, seq uint32, body []byte)) error {
	n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
	if err != nil {
		return fmt.Errorf("hear from nf_tables: %w", err)
	}
	messages(c.buf[:n], f)
	return nil
}

func messages(b []byte, f func(kind uint16, seq uint32, body []byte)) {
	for len(b) >= unix.NLMSG_HDRLEN {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:]), b[unix.NLMSG_HDRLEN:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// dump asks for a list and calls f with the attributes of each message.
func (c *conn) dump(kind uint16, family uint8, body func([]byte) []byte, f func(attrs []byte)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	mine := c.seq
	b := appendMessage(nil, unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_DUMP, mine, family, 0, body)
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to nf_tables: %w", err)
	}
	var fault error
	for done := false; !done; {
		err := c.receive(func(kind uint16, seq uint32, body []byte) {
			switch {
			case seq != mine:
			case kind == unix.NLMSG_DONE:
				done = true
			case kind == unix.NLMSG_ERROR && len(body) >= 4:
				if e := -int32(binary.NativeEndian.Uint32(body)); e != 0 {
					fault = os.NewSyscallError("nf_tables", unix.Errno(e))
				}
				done = true
			case len(body) > 4:
				f(body[4:])
			}
		})
		if err != nil {
			return err
		}
	}
	return fault
}

// elements returns what a set holds.
func (c *conn) elements(family uint8, table, set string) (all []element, err error) {
	err = c.dump(unix.NFT_MSG_GETSETELEM, family, func(b []byte) []byte {
		b = appendAttribute(b, unix.NFTA_SET_ELEM_LIST_TABLE, text(table))
		return appendAttribute(b, unix.NFTA_SET_ELEM_LIST_SET, text(set))
	}, func(attrs []byte) {
		attributes(attrs, func(kind uint16, list []byte) {
			if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				return
			}
			attributes(list, func(_ uint16, one []byte) {
				var e element
				attributes(one, func(kind uint16, v []byte) {
					switch {
					case kind == unix.NFTA_SET_ELEM_KEY:
						attributes(v, func(_ uint16, key []byte) { e.key = append([]byte(nil), key...) })
					case kind == unix.NFTA_SET_ELEM_TIMEOUT && len(v) == 8:
						e.timeout = time.Duration(binary.BigEndian.Uint64(v)) * time.Millisecond
					}
				})
				all = append(all, e)
			})
		})
	})
	return all, err
}

// counters calls f for each named counter of a table.
func (c *conn) counters(family uint8, table string, f func(name string, packets uint64)) error {
	return c.dump(unix.NFT_MSG_GETOBJ, family, func(b []byte) []byte {
		return appendAttribute(b, unix.NFTA_OBJ_TABLE, text(table))
	}, func(attrs []byte) {
		var name string
		var packets uint64
		mine := false
		attributes(attrs, func(kind uint16, v []byte) {
			switch kind {
			case unix.NFTA_OBJ_TABLE:
				mine = string(v) == table+"\x00"
			case unix.NFTA_OBJ_NAME:
				name = string(v[:max(len(v)-1, 0)])
			case unix.NFTA_OBJ_DATA:
				attributes(v, func(kind uint16, v []byte) {
					if kind == unix.NFTA_COUNTER_PACKETS && len(v) == 8 {
						packets = binary.BigEndian.Uint64(v)
					}
				})
			}
		})
		if mine {
			f(name, packets)
		}
	})
}
