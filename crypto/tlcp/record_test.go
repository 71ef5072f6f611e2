package tlcp

import (
	"bytes"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math"
	"testing"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"
)

// halves returns both ends of one direction under the suite.
func halves(t testing.TB, id uint16) (out, in *halfConn) {
	t.Helper()
	s := suiteByID(id)
	key, mac, iv := bytes.Repeat([]byte{1}, keyLen), bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{3}, s.ivLen)
	out, in = new(halfConn), new(halfConn)
	var err error
	if out.prot, err = s.protect(key, mac, iv, false); err != nil {
		t.Fatal(err)
	}
	if in.prot, err = s.protect(key, mac, iv, true); err != nil {
		t.Fatal(err)
	}
	return out, in
}

func seal(t testing.TB, out *halfConn, payload []byte) []byte {
	t.Helper()
	rec, err := out.seal(nil, recordApplicationData, payload, testRand(t))
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func TestRecordRoundTrip(t *testing.T) {
	for _, id := range []uint16{ECC_SM4_GCM_SM3, ECC_SM4_CBC_SM3} {
		out, in := halves(t, id)
		for _, n := range []int{0, 1, 15, 16, 17, 31, 32, 33, 1000, maxPlaintext - 1, maxPlaintext} {
			payload := bytes.Repeat([]byte{byte(n)}, n)
			rec := seal(t, out, payload)
			if len(rec) > recordHeader+maxCiphertext || len(rec) > n+maxOverhead {
				t.Errorf("%04x: %d bytes of payload make a record of %d", id, n, len(rec))
			}
			if v := binary.BigEndian.Uint16(rec[1:]); v != Version || int(binary.BigEndian.Uint16(rec[3:])) != len(rec)-recordHeader {
				t.Errorf("%04x: header % x", id, rec[:recordHeader])
			}
			got, err := in.open(recordApplicationData, rec[recordHeader:], nil)
			if err != nil || !bytes.Equal(got, payload) {
				t.Errorf("%04x: %d bytes: %v", id, n, err)
			}
		}
	}
}

func TestGCMNonceIsTheSequenceNumber(t *testing.T) {
	out, _ := halves(t, ECC_SM4_GCM_SM3)
	for seq := range uint64(300) {
		if got := binary.BigEndian.Uint64(seal(t, out, []byte("x"))[recordHeader:]); got != seq {
			t.Fatalf("record %d: explicit nonce %d", seq, got)
		}
	}
}

func TestSequenceNumbersEnd(t *testing.T) {
	out, in := halves(t, ECC_SM4_GCM_SM3)
	rec := seal(t, out, []byte("x"))
	out.seq, in.seq = math.MaxUint64, math.MaxUint64
	if _, err := out.seal(nil, recordApplicationData, []byte("x"), testRand(t)); !errors.Is(err, errSequence) {
		t.Errorf("seal: %v", err)
	}
	if _, err := in.open(recordApplicationData, rec[recordHeader:], nil); !errors.Is(err, errSequence) {
		t.Errorf("open: %v", err)
	}
}

// TestEveryFlippedBitIsRefused flips each bit of a record, its type and its
// sequence number included.
func TestEveryFlippedBitIsRefused(t *testing.T) {
	for _, id := range []uint16{ECC_SM4_GCM_SM3, ECC_SM4_CBC_SM3} {
		for _, n := range []int{0, 1, 47, 48, 300} {
			out, in := halves(t, id)
			rec := seal(t, out, bytes.Repeat([]byte{0x5a}, n))
			body := make([]byte, len(rec)-recordHeader)
			for bit := range 8 * len(body) {
				copy(body, rec[recordHeader:])
				body[bit/8] ^= 1 << (bit % 8)
				mustRefuse(t, in, recordApplicationData, body)
			}
			for cut := range len(body) {
				copy(body, rec[recordHeader:])
				mustRefuse(t, in, recordApplicationData, body[:cut])
			}
			copy(body, rec[recordHeader:])
			mustRefuse(t, in, recordHandshake, body)
			copy(body, rec[recordHeader:])
			in.seq++
			mustRefuse(t, in, recordApplicationData, body)
			in.seq--
			copy(body, rec[recordHeader:])
			if _, err := in.open(recordApplicationData, body, nil); err != nil {
				t.Errorf("%04x: the record itself: %v", id, err)
			}
			copy(body, rec[recordHeader:])
			mustRefuse(t, in, recordApplicationData, body) // a replay
		}
	}
}

func mustRefuse(t *testing.T, in *halfConn, typ recordType, body []byte) {
	t.Helper()
	seq := in.seq
	got, err := in.open(typ, body, nil)
	var a *AlertError
	if !errors.As(err, &a) || a.Alert != AlertBadRecordMAC || got != nil {
		t.Fatalf("got %q, %v; want bad_record_mac", got, err)
	}
	if in.seq != seq {
		t.Fatal("a refused record moved the sequence number")
	}
}

// counter counts the blocks that SM3 compresses.
type counter struct {
	hash.Hash
	pending uint64
	blocks  *int
}

func (c *counter) Write(b []byte) (int, error) {
	*c.blocks += int((c.pending+uint64(len(b)))/sm3.BlockSize - c.pending/sm3.BlockSize)
	c.pending += uint64(len(b))
	return c.Hash.Write(b)
}

func (c *counter) Sum(b []byte) []byte {
	*c.blocks++
	if c.pending%sm3.BlockSize > sm3.BlockSize-9 {
		*c.blocks++ // no room for bit and length
	}
	return c.Hash.Sum(b)
}

func (c *counter) Reset() {
	c.pending = 0
	c.Hash.Reset()
}

// TestCBCCostsTheSameForEveryPadding counts SM3 compressions for every padding
// that a record of one length can have, right and wrong: an attacker must not
// learn it from the time (Lucky 13).
func TestCBCCostsTheSameForEveryPadding(t *testing.T) {
	mac := bytes.Repeat([]byte{2}, 32)
	for _, length := range []int{48, 64, 80, 96, 112, 128, 304, 320, 336, 352, 1024, 16384} {
		want := -1
		count := func(data []byte, what string, ok bool) {
			t.Helper()
			out, in := halves(t, ECC_SM4_CBC_SM3)
			blocks := 0
			in.prot.mac = hmac.New(func() hash.Hash { return &counter{Hash: sm3.New(), blocks: &blocks} }, mac)
			body := make([]byte, sm4.BlockSize+len(data))
			out.prot.block.(setIV).SetIV(body[:sm4.BlockSize])
			out.prot.block.CryptBlocks(body[sm4.BlockSize:], data)
			blocks = 0
			if _, err := in.open(recordApplicationData, body, nil); (err == nil) != ok {
				t.Fatalf("length %d, %s: %v", length, what, err)
			}
			if want < 0 {
				want = blocks
			}
			if blocks != want {
				t.Errorf("length %d, %s: %d compressions, elsewhere %d", length, what, blocks, want)
			}
		}
		for pad := 1; pad <= min(256, length-sm3.Size); pad++ {
			if length > 1024 && pad%51 != 1 {
				continue
			}
			n := length - sm3.Size - pad
			out, _ := halves(t, ECC_SM4_CBC_SM3)
			out.header(recordApplicationData, n)
			data := make([]byte, n, length)
			h := hmac.New(sm3.New, mac)
			h.Write(out.aad[:])
			h.Write(data)
			data = h.Sum(data)
			data = append(data, bytes.Repeat([]byte{byte(pad - 1)}, pad)...)
			count(data, fmt.Sprintf("padding %d", pad), true)
			if pad > 1 {
				bad := bytes.Clone(data)
				bad[length-pad] ^= 1
				count(bad, fmt.Sprintf("padding %d, first byte wrong", pad), false)
			}
			bad := bytes.Clone(data)
			bad[n] ^= 1
			count(bad, fmt.Sprintf("padding %d, MAC wrong", pad), false)
		}
		bad := make([]byte, length)
		bad[length-1] = 255
		count(bad, "padding 256 in zeros", false)
	}
}

func TestPadding(t *testing.T) {
	for _, c := range []struct {
		name         string
		data         []byte
		length, good int
	}{
		{"one", append(make([]byte, 47), 0), 1, 1},
		{"two", append(make([]byte, 46), 1, 1), 2, 1},
		{"wrong", append(make([]byte, 46), 2, 1), 1, 0},
		{"sixteen", append(make([]byte, 32), bytes.Repeat([]byte{15}, 16)...), 16, 1},
		{"into the MAC", append(make([]byte, 31), bytes.Repeat([]byte{16}, 17)...), 1, 0},
		{"longer than the record", bytes.Repeat([]byte{255}, 48), 1, 0},
		{"the longest", append(make([]byte, 32), bytes.Repeat([]byte{255}, 256)...), 256, 1},
		{"the longest, first byte wrong", append(make([]byte, 33), bytes.Repeat([]byte{255}, 255)...), 1, 0},
	} {
		if length, good := padding(c.data); length != c.length || good != c.good {
			t.Errorf("%s: got %d, %d; want %d, %d", c.name, length, good, c.length, c.good)
		}
	}
}

func TestGCMRecordsDoNotAllocate(t *testing.T) {
	out, in := halves(t, ECC_SM4_GCM_SM3)
	payload := make([]byte, maxPlaintext)
	buf := make([]byte, 0, recordHeader+maxCiphertext)
	n := testing.AllocsPerRun(100, func() {
		rec, err := out.seal(buf, recordApplicationData, payload, nil)
		if err == nil {
			_, err = in.open(recordApplicationData, rec[recordHeader:], nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations a record", n)
	}
}

func TestConnDoesNotAllocatePerRecord(t *testing.T) {
	site := newSite(t)
	s, c := mustHandshake(t, "tcp4", first(site.configs(ECC_SM4_GCM_SM3, false)), second(site.configs(ECC_SM4_GCM_SM3, false)))
	for _, size := range []int{100, 3 * maxPlaintext} {
		data, got := make([]byte, size), make([]byte, size)
		send := make(chan struct{})
		done := make(chan error)
		go func() {
			for range send {
				_, err := c.Write(data)
				done <- err
			}
		}()
		n := testing.AllocsPerRun(200, func() {
			send <- struct{}{}
			for at := 0; at < size; {
				m, err := s.Read(got[at:])
				if err != nil {
					t.Fatal(err)
				}
				at += m
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		})
		close(send)
		// A garbage collection may empty the pool of buffers.
		if n >= 1 {
			t.Errorf("%d bytes: %v allocations to send and to receive", size, n)
		}
	}
}

func first(a, _ *Config) *Config  { return a }
func second(_, b *Config) *Config { return b }
