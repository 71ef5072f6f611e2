// Package adminsock is the local face of a running role: JSON over HTTP on a
// unix socket of mode 0600. Who may connect is decided by the file's mode, and
// who did is known from the kernel, for the audit.
package adminsock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Listen opens the socket at path with mode 0600. A socket that nobody serves
// is a leftover and is replaced; one that somebody serves is an error.
func Listen(path string) (net.Listener, error) { return listen(path, 0o600) }

// ListenAll is [Listen] for a socket to which every local user may connect;
// [ServeAll]'s handler decides by [UID].
func ListenAll(path string) (net.Listener, error) { return listen(path, 0o666) }

func listen(path string, mode fs.FileMode) (net.Listener, error) {
	const most = 104 // bytes of a socket's path on the systems that we build for
	if len(path) > most {
		return nil, fmt.Errorf("listen on admin socket %s: the path has %d bytes, at most %d (set a shorter one)", path, len(path), most)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listen on admin socket: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("listen on admin socket %s: another process serves it (stop it first)", path)
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("listen on admin socket %s: the path is no socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen on admin socket: %w", err)
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on admin socket: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		ln.Close()
		return nil, fmt.Errorf("listen on admin socket: %w", err)
	}
	return ln, nil
}

type uidKey struct{}

// Serve serves h on ln until ctx is done. Inside a handler, [UID] tells who
// asks.
func Serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	return ServeAll(ctx, ln, own(h))
}

// ServeAll is Serve for a handler that decides itself who may do what.
func ServeAll(ctx context.Context, ln net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, uidKey{}, peerUID(c))
		},
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if s.Shutdown(grace) != nil {
			s.Close()
		}
	})
	err := s.Serve(ln)
	if stop() {
		return err
	}
	<-stopped
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// own lets in whom the file's mode lets in: the role's user and root. Between
// its making and its mode a socket may be open to others for a moment.
func own(h http.Handler) http.Handler {
	us := strconv.Itoa(os.Geteuid())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u := UID(r); u != us && u != "0" && u != unknown {
			Refuse(w, http.StatusForbidden, fmt.Errorf("the socket is for user id %s and root, you are %s (use sudo)", us, u))
			return
		}
		h.ServeHTTP(w, r)
	})
}

// unknown is the user id where the system does not say.
const unknown = "unknown"

// UID returns the user id of the process that sent r, or "unknown" where the
// system does not say.
func UID(r *http.Request) string {
	if s, ok := r.Context().Value(uidKey{}).(string); ok {
		return s
	}
	return unknown
}

// Reply sends v as JSON.
func Reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client that went away needs no answer
}

// Refuse sends err with an HTTP status; [Client.Do] gives the same text back.
func Refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(fault{err.Error()}) // as above
}

type fault struct {
	Error string `json:"error"`
}

// Read decodes the body of r into v strictly.
func Read(r *http.Request, v any) error {
	d := json.NewDecoder(io.LimitReader(r.Body, 1<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	return nil
}

// Client calls the role behind a socket. It is safe for concurrent use.
type Client struct {
	path string
	http *http.Client
}

// answerTimeout is how long a role may take to begin its answer; the longest
// verb waits half a minute for gateways.
const answerTimeout = time.Minute

// NewClient returns a client of the socket at path.
func NewClient(path string) *Client {
	return &Client{path, &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true, ResponseHeaderTimeout: answerTimeout,
	}}}
}

// Copy gets path and writes the answer to w as it comes.
func (c *Client) Copy(ctx context.Context, path string, w io.Writer) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://local/"+strings.TrimPrefix(path, "/"), nil)
	if err != nil {
		return fmt.Errorf("call %s: %w", path, err)
	}
	resp, err := c.answer(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}

// answer sends r and returns an answer that is no refusal.
func (c *Client) answer(r *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("call admin socket %s: %w (is the role running, is this its socket, and are you its user?)", c.path, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var f fault
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if json.Unmarshal(raw, &f) != nil || f.Error == "" {
		f.Error = fmt.Sprintf("status %d: %s", resp.StatusCode, raw)
	}
	return nil, errors.New(f.Error)
}

// Do sends in (nil: no body) to path and decodes the answer into out (nil:
// ignored). An error carries the role's own words.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("call %s: %w", path, err)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://local/"+strings.TrimPrefix(path, "/"), body)
	if err != nil {
		return fmt.Errorf("call %s: %w", path, err)
	}
	resp, err := c.answer(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read answer of %s: %w", path, err)
	}
	return nil
}
