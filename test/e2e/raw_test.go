package e2e

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"time"
)

// rawExchange writes bytes and returns the status of the answer (0: none),
// whether the peer closed the connection, and the answer's body.
func rawExchange(c net.Conn, raw string) (status int, closed bool, body string) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(15 * time.Second)) // a connection that is gone says so in what follows
	if _, err := io.WriteString(c, raw); err != nil {
		return 0, true, ""
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		ne, timeout := err.(net.Error)
		return 0, !timeout || !ne.Timeout(), ""
	}
	b, _ := io.ReadAll(resp.Body) // what came counts
	resp.Body.Close()
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	rest, err := io.ReadAll(r)
	ne, timeout := err.(net.Error)
	return resp.StatusCode, err == nil || !timeout || !ne.Timeout(), string(b) + string(rest)
}
