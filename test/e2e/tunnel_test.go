package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/audit"
	"github.com/yumen-zt/yumen/test/testbed"
)

// resp is a client of the Redis protocol.
type resp struct {
	net.Conn
	r *bufio.Reader
}

func newRESP(c net.Conn) *resp { return &resp{c, bufio.NewReaderSize(c, 1<<16)} }

// command sends words and returns the reply's line; a bulk reply goes to bulk.
func (c *resp) command(bulk io.Writer, words ...string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
	}
	if _, err := io.WriteString(c, b.String()); err != nil {
		return "", err
	}
	return c.reply(bulk)
}

func (c *resp) reply(bulk io.Writer) (string, error) {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if !strings.HasPrefix(line, "$") {
		return line, nil
	}
	n, err := strconv.ParseInt(line[1:], 10, 64)
	if err != nil || n < 0 {
		return line, err
	}
	if bulk == nil {
		bulk = io.Discard
	}
	if _, err := io.CopyN(bulk, c.r, n); err != nil {
		return "", err
	}
	_, err = c.r.Discard(2)
	return line, err
}

// set stores n bytes that the seed gives, and returns their digest.
func (c *resp) set(key string, n int64, seed uint64) (string, error) {
	h := sha256.New()
	if _, err := fmt.Fprintf(c, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n", len(key), key, n); err != nil {
		return "", err
	}
	var s [32]byte
	s[0] = byte(seed)
	if _, err := io.CopyN(io.MultiWriter(c, h), rand.NewChaCha8(s), n); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "\r\n"); err != nil {
		return "", err
	}
	if got, err := c.reply(nil); err != nil || got != "+OK" {
		return "", fmt.Errorf("SET: %q, %w", got, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// A session of Redis and of PostgreSQL and large transfers in both directions
// go through the agent as if nothing stood between.
func TestGCR002_M4_M78_DatabasesThroughTheAgent(t *testing.T) {
	t.Parallel()
	inWorlds(t, everywhere, func(t *testing.T, w *world) {
		p := peers(t)
		u := w.NewUser("tunnel")
		apps, forwards := []string{redisID}, []testbed.App{w.app(redisID)}
		if p.pg != nil {
			apps, forwards = append(apps, pgID), append(forwards, w.app(pgID))
		}
		w.Grant(u, "any", time.Time{}, apps...)
		a := w.NewAgent(t, "tunnelagent", forwards...)
		a.SignIn(u)
		ctx := within(t, 5*time.Minute)
		deadline, _ := ctx.Deadline()

		ways := map[string]func() (net.Conn, error){
			"SOCKS5 by address": func() (net.Conn, error) { return testbed.DialSOCKS(ctx, a.SOCKS5, w.app(redisID).Address()) },
			"SOCKS5 by name": func() (net.Conn, error) {
				return testbed.DialSOCKS(ctx, a.SOCKS5, net.JoinHostPort("redis.app", strconv.Itoa(p.redis)))
			},
			"port forward": func() (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", a.Forwards[0]) },
		}
		for name, dial := range ways {
			c, err := dial()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := c.SetDeadline(deadline); err != nil {
				t.Fatal(err)
			}
			r := newRESP(c)
			for i := range 50 {
				key := fmt.Sprintf("%s %s %d", w.where.String(), name, i)
				if got, err := r.command(nil, "SET", key, "值 "+key); err != nil || got != "+OK" {
					t.Fatalf("%s: SET %q, %v", name, got, err)
				}
				var b strings.Builder
				if _, err := r.command(&b, "GET", key); err != nil || b.String() != "值 "+key {
					t.Fatalf("%s: GET %q, %v", name, b.String(), err)
				}
			}
			if name == "SOCKS5 by name" {
				c.Close()
				continue // the two others carry the bulk
			}
			key, began := "bulk "+w.where.String()+name, time.Now()
			sum, err := r.set(key, bulk(), uint64(len(name)))
			if err != nil {
				t.Fatalf("%s: upload: %v", name, err)
			}
			up := time.Since(began)
			began = time.Now()
			h := sha256.New()
			if _, err := r.command(h, "GET", key); err != nil || hex.EncodeToString(h.Sum(nil)) != sum {
				t.Errorf("%s: download: digest %x, want %s; %v", name, h.Sum(nil), sum, err)
			}
			down := time.Since(began)
			t.Logf("%s over %s: %d MiB up in %v, down in %v", name, w.where.String(), bulk()>>20, up.Round(time.Millisecond), down.Round(time.Millisecond))
			if _, err := r.command(nil, "DEL", key); err != nil {
				t.Error(err)
			}
			c.Close()
		}
		all := w.GatewayAudit.Await(t, 3, "Redis flows", func(r *audit.Record) bool {
			return r.Kind == audit.End && r.UserID == u.ID && r.AppID == redisID && r.Carrier == "tcp"
		})
		var in, out int64
		for _, r := range all {
			in, out = in+r.BytesIn, out+r.BytesOut
			if r.DeviceID != a.DeviceID || r.AgentID != a.ID {
				t.Errorf("audit names %s on %s: %+v", r.AgentID, r.DeviceID, r)
			}
		}
		if in < 2*bulk() || out < 2*bulk() {
			t.Errorf("audit counts %d bytes in, %d out; at least %d each wanted", in, out, 2*bulk())
		}
		redisCLI(ctx, t, a.Forwards[0])
		if p.pg != nil {
			postgres(ctx, t, p.pg, a.Forwards[1], "t"+w.where.String())
		}
	})
}

// redisCLI lets the real client speak through a forwarded port.
func redisCLI(ctx context.Context, t *testing.T, at string) {
	t.Helper()
	host, port, _ := net.SplitHostPort(at)
	out, err := exec.CommandContext(ctx, "redis-cli", "-h", host, "-p", port, "PING").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "PONG" {
		t.Errorf("redis-cli: %q, %v", out, err)
	}
}

func postgres(ctx context.Context, t *testing.T, pg *testbed.PostgreSQL, at, table string) {
	t.Helper()
	query := func(sql string) string {
		t.Helper()
		out, err := pg.Query(ctx, at, sql)
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return out
	}
	query("create table " + table + " (id int, what text)")
	query("insert into " + table + " select i, '玉门 ' || i from generate_series(1, 1000) i")
	if got := query("select count(*) || what from " + table + " where id <= 7 group by what order by what limit 1"); got != "1玉门 1" {
		t.Errorf("PostgreSQL: %q", got)
	}
	const row = "select i || ' ' || md5(i::text) from generate_series(1, 400000) i"
	rows := query(row)
	want := sha256.New()
	direct, err := pg.Query(ctx, testbed.Loopback(true, pg.Port), row)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(want, direct) // a digest takes everything
	if got := sha256.Sum256([]byte(rows)); len(rows) < 10<<20 || string(got[:]) != string(want.Sum(nil)) {
		t.Errorf("PostgreSQL: %d bytes through the agent differ from %d at the server", len(rows), len(direct))
	}
}
