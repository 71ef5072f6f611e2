package proxy

import (
	"context"
	"crypto/rand"
	"crypto/sha1" // RFC 6455 §4.2.2; no secret depends on it
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/yumen-zt/yumen/internal/reason"
	"github.com/yumen-zt/yumen/proxy/exchange"
	"github.com/yumen-zt/yumen/proxy/upstream"
)

// webSocketFault says why x is no opening handshake of RFC 6455 §4.1, or "".
func webSocketFault(x *Exchange) string {
	one := func(name string) (string, bool) {
		v := x.Header.Values(name)
		if len(v) != 1 {
			return "", false
		}
		return v[0], true
	}
	upgrade, ok := one("Upgrade")
	version, ok2 := one("Sec-WebSocket-Version")
	key, ok3 := one("Sec-WebSocket-Key")
	switch raw, err := base64.StdEncoding.DecodeString(key); {
	case x.Carrier != exchange.H1 || x.Proto != "HTTP/1.1" || x.Method != http.MethodGet:
		return "not a GET of HTTP/1.1"
	case !ok || !strings.EqualFold(upgrade, "websocket"):
		return "protocol " + upgrade
	case !x.Header.HasToken("Connection", "upgrade"):
		return "Upgrade is not named in Connection"
	case x.Header.Has("HTTP2-Settings") || x.Header.HasToken("Connection", "http2-settings"):
		return "HTTP2-Settings"
	case !ok2 || version != "13":
		return "version " + version
	case !ok3 || err != nil || len(raw) != 16:
		return "malformed key"
	case x.Body != nil || x.Length != 0:
		return "a body"
	}
	return ""
}

// checkConnect passes extended CONNECTs of WebSocket (RFC 8441, RFC 9220) and
// refuses every other. To the application it is an upgrade of HTTP/1.1, whose key
// is the gateway's own.
func checkConnect(x *Exchange) error {
	versions := x.Header.Values("Sec-WebSocket-Version")
	switch {
	case x.Connect != "websocket":
		return denied(reason.UpgradeRefused, "protocol "+x.Connect)
	case len(versions) != 1 || versions[0] != "13":
		return denied(reason.UpgradeRefused, "version "+strings.Join(versions, ", "))
	case x.Header.Has("Sec-WebSocket-Key") || x.Header.Has("Upgrade"):
		return denied(reason.UpgradeRefused, "fields of an upgrade of HTTP/1.1")
	}
	var key [16]byte
	_, _ = rand.Read(key[:]) // never fails
	x.Header.Add("Sec-WebSocket-Key", base64.StdEncoding.EncodeToString(key[:]))
	x.Carrier = exchange.WebSocket
	return nil
}

func webSocketAccept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// tunnel answers 101 and relays until one end closes or access cuts. Nothing
// that the client sends reaches the upstream before the upstream has agreed.
func (p *Proxy) tunnel(x *Exchange, res *upstream.Response) error {
	up := res.Tunnel
	defer up.Close()
	if !strings.EqualFold(res.Header.Get("Upgrade"), "websocket") || !res.Header.HasToken("Connection", "upgrade") ||
		res.Header.Get("Sec-WebSocket-Accept") != webSocketAccept(x.Header.Get("Sec-WebSocket-Key")) {
		return p.deny(x, denied(reason.UpstreamBadResponse, "101 that does not answer the handshake"))
	}
	h := answerable(nil, res.Header)
	if x.Connect == "" {
		h.Add("Connection", "Upgrade")
		h.Add("Upgrade", "websocket")
	} else {
		h = slices.DeleteFunc(h, func(f exchange.Field) bool { return strings.EqualFold(f.Name, "Sec-WebSocket-Accept") })
	}
	h.Add("X-Request-Id", x.ID)
	client, err := x.Upgrade(h)
	if errors.Is(err, exchange.ErrCut) {
		return p.deny(x, p.failure(x, nil, err))
	}
	if err != nil {
		return fmt.Errorf("open tunnel: %w", err)
	}
	freed := make(chan struct{})
	stop := context.AfterFunc(x.Context(), func() {
		_, cut := x.CutReason()
		if cut {
			_ = client.SetWriteDeadline(time.Now().Add(time.Millisecond)) // frees a relay that waits for the client
		}
		close(freed)
		up.Close() // no byte more of either side
		if !cut {
			client.Close()
		}
	})
	defer stop()

	inward := make(chan struct{})
	var linger *time.Timer // set before inward is closed
	go func() {
		defer close(inward)
		err := relay(up, client, &x.BytesIn, func() error { return nil }, nil)
		if half, ok := up.(interface{ CloseWrite() error }); ok && errors.Is(err, io.EOF) && half.CloseWrite() == nil {
			// The client has said all. A farewell of the application still goes out.
			linger = time.AfterFunc(webSocketLinger, func() { up.Close() })
			return
		}
		up.Close()
		if _, cut := x.CutReason(); !cut {
			client.Close()
		}
	}()
	var sent frames
	_ = relay(client, up, &x.BytesOut, func() error { // whatever ended it, it is over
		return client.SetWriteDeadline(time.Now().Add(p.cfg.Limits.WriteStall))
	}, &sent)
	up.Close()
	if r, cut := x.CutReason(); cut {
		if !stop() {
			<-freed // else that deadline could end the farewell
		}
		p.metrics.cuts.WithLabelValues(r.String()).Inc()
		sent.farewell(client, r)
	}
	client.Close()
	<-inward
	if linger != nil {
		linger.Stop()
	}
	return nil
}

// webSocketLinger is how long an application may take to end a WebSocket that
// its client has ended.
const webSocketLinger = 5 * time.Second

// relay copies from src to dst until one of both fails, and returns why: io.EOF
// when src has ended. sent, if it is not nil, follows what was sent whole.
func relay(dst io.Writer, src io.Reader, count interface{ Add(int64) int64 }, arm func() error, sent *frames) error {
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if err := arm(); err != nil {
				return err
			}
			wn, err := dst.Write(buf[:n])
			count.Add(int64(wn))
			if sent != nil {
				sent.follow(buf[:wn])
			}
			if err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}
