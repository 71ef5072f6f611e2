package h1

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/watch"
	"github.com/yumen-zt/yumen/proxy/exchange"
)

// An upstream may answer before it reads: once the answer has begun, nobody
// writes 100 into it.
func TestNo100InsideAnAnswer(t *testing.T) {
	s := New(Config{
		HeaderBytes: 32 << 10, HeaderFields: 100, HeaderTimeout: time.Minute, IdleTimeout: time.Minute, WriteStall: time.Minute,
		Watch: watch.New(), Malformed: func(*exchange.Conn, error) {}, Now: time.Now,
		Serve: func(x *exchange.Exchange) error {
			if err := x.WriteHeader(200, nil, 2, nil); err != nil {
				return err
			}
			if err := x.Stream.WakeReader(); err != nil { // what the walk does to a body that is not wanted
				return err
			}
			_, _ = x.Body.Read(make([]byte, 8))
			_, err := x.Stream.Write([]byte("ok"))
			return err
		},
	})
	here, there := net.Pipe()
	go s.ServeConn(context.Background(), &exchange.Conn{Conn: there})
	if _, err := io.WriteString(here, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(here)
	if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 200 OK\r\n") || !strings.HasSuffix(string(got), "\r\n\r\nok") || strings.Contains(string(got), "100 Continue") {
		t.Errorf("%q, %v", got, err)
	}
}
