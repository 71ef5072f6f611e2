package proxy

import (
	"io"
	"testing"
	"time"

	"github.com/yumen-zt/yumen/internal/alert"
	"github.com/yumen-zt/yumen/internal/reason"
)

// Heads that are no requests, and requests that two parsers could read in two
// ways, are alerted with their source.
func TestGCR002_M68_AbusiveRequestsAreAlerted(t *testing.T) {
	f := newFixture(t, "http://127.0.0.1:1")
	for name, head := range map[string]string{
		"no head":    "GET\r\n\r\n",
		"two bodies": "POST / HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		c := f.raw(host)
		if _, err := io.WriteString(c, head); err != nil {
			t.Fatal(err)
		}
		select {
		case a := <-f.alerts:
			if a.Code != alert.RequestAbuse || a.Remote != "127.0.0.1" || a.Reason == reason.OK {
				t.Errorf("%s: alert %+v", name, a)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s was not alerted", name)
		}
		c.Close()
	}
}
