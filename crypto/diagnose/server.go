package diagnose

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/emmansun/gmsm/smx509"
)

// Bounds of an examination.
const (
	defaultTimeout = 30 * time.Second // of all of it
	defaultStep    = 5 * time.Second  // of one connection
	maxBytes       = 512 << 10        // received on one connection
	lastWord       = 500 * time.Millisecond
)

// ServerOptions say what [Server] examines.
type ServerOptions struct {
	Address    string                // HOST:PORT; required
	ServerName string                // SNI and the name that certificates must have; default the host of Address
	Roots      *x509.CertPool        // for TLS; nil: the system's
	TLCPRoots  []*smx509.Certificate // empty: chains of TLCP are not checked
	Timeout    time.Duration         // of the whole examination; default 30 s
	Step       time.Duration         // of one connection; default 5 s
	Now        func() time.Time      // default time.Now
}

// ServerReport is what a server speaks and what is wrong with it.
type ServerReport struct {
	Address    string     `json:"address"`
	Remote     string     `json:"remote,omitempty"` // the address that was reached
	ServerName string     `json:"server_name"`
	TLS        TLSReport  `json:"tls"`
	TLCP       TLCPReport `json:"tlcp"`
	Findings   Findings   `json:"findings"`
}

// Offer is one version or suite, and what became of asking for it.
type Offer struct {
	Name   string `json:"name"`
	Taken  bool   `json:"taken"`
	Detail string `json:"detail,omitempty"` // what was agreed on, or why it was not taken
}

// TLSReport is the part of [ServerReport] about TLS 1.0 to 1.3.
type TLSReport struct {
	Versions     []Offer    `json:"versions"`
	ALPN         string     `json:"alpn,omitempty"`
	ClientCert   string     `json:"client_certificate,omitempty"` // none, asked or demanded
	Resumption   bool       `json:"resumption"`
	Certificates []CertInfo `json:"certificates,omitempty"`
}

// TLCPReport is the part of [ServerReport] about TLCP.
type TLCPReport struct {
	Suites       []Offer    `json:"suites"`
	ALPN         string     `json:"alpn,omitempty"`
	ClientCert   string     `json:"client_certificate,omitempty"`
	Resumption   bool       `json:"resumption"`
	Certificates []CertInfo `json:"certificates,omitempty"`
}

// What a server wants of clients.
const (
	certNone     = "none"
	certAsked    = "asked"
	certDemanded = "demanded"
)

// Err returns an error when there is a fault.
func (r *ServerReport) Err() error { return r.Findings.Err("examine " + clean(r.Address)) }

// examination is one run of [Server].
type examination struct {
	ServerOptions
	ctx context.Context
	r   *ServerReport

	tlsWhy, tlcpWhy error // why nothing was taken
	plain           string
}

// Server connects to a server some dozen times and says what it speaks: the
// versions of TLS, the suites of TLCP, the certificates of both and what is
// wrong with them. It sends no application data, ends in Timeout, and reads a
// bounded number of bytes. The report is never nil.
func Server(ctx context.Context, o ServerOptions) *ServerReport {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Step <= 0 {
		o.Step = defaultStep
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	host, _, err := net.SplitHostPort(o.Address)
	if o.ServerName == "" {
		o.ServerName = host
	}
	x := &examination{ServerOptions: o, r: &ServerReport{Address: o.Address, ServerName: o.ServerName}}
	if err != nil {
		x.r.Findings.add("connect", o.Address, err)
		return x.r
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	x.ctx = ctx

	c, err := x.dial() // 1 is anybody there
	if err != nil {
		x.r.Findings.add("connect", o.Address, err)
		return x.r
	}
	x.r.Remote = c.RemoteAddr().String()
	c.Close()
	tlsTaken := x.tls()   // 2
	tlcpTaken := x.tlcp() // 3
	x.conclude(tlsTaken, tlcpTaken)
	return x.r
}

// conclude says what the two halves mean together.
func (x *examination) conclude(tlsTaken, tlcpTaken bool) {
	f := &x.r.Findings
	switch {
	case tlsTaken || tlcpTaken:
		if !tlsTaken {
			f.add("tls-none", x.tlsWhy)
		}
		if !tlcpTaken && len(x.TLCPRoots) > 0 {
			f.add("tlcp-none-but", x.tlcpWhy)
		} else if !tlcpTaken && x.tlcpWhy != nil {
			f.add("tlcp-none", x.tlcpWhy)
		}
	case x.plain != "":
		f.add("plain", x.plain)
	case f.Count(Fault) == 0:
		f.add("silent")
	}
	if err := x.ctx.Err(); err != nil {
		f.add("gave-up", err)
	}
}

// dial opens a connection that ends by itself and does not deliver more than
// maxBytes.
func (x *examination) dial() (net.Conn, error) {
	d := net.Dialer{Timeout: x.Step}
	c, err := d.DialContext(x.ctx, "tcp", x.Address)
	if err != nil {
		return nil, err
	}
	end := time.Now().Add(x.Step)
	if t, ok := x.ctx.Deadline(); ok && t.Before(end) {
		end = t
	}
	if err := c.SetDeadline(end); err != nil {
		c.Close()
		return nil, err
	}
	return &bounded{Conn: c, end: end, left: maxBytes}, nil
}

// bounded is a connection with an end: in time, which only ever comes nearer,
// and in bytes.
type bounded struct {
	net.Conn
	end   time.Time
	left  int
	first []byte // the first bytes that came, to know plain text by
}

var errTooMuch = errors.New("the server sends too much")

func (b *bounded) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errTooMuch
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	if room := 64 - len(b.first); room > 0 {
		b.first = append(b.first, p[:min(n, room)]...)
	}
	return n, err
}

func (b *bounded) SetDeadline(t time.Time) error      { return b.Conn.SetDeadline(b.nearer(t)) }
func (b *bounded) SetReadDeadline(t time.Time) error  { return b.Conn.SetReadDeadline(b.nearer(t)) }
func (b *bounded) SetWriteDeadline(t time.Time) error { return b.Conn.SetWriteDeadline(b.nearer(t)) }

func (b *bounded) nearer(t time.Time) time.Time {
	if t.IsZero() || t.After(b.end) {
		return b.end
	}
	return t
}

// sawPlain remembers when a server answered in words.
func (x *examination) sawPlain(c net.Conn) {
	b, ok := c.(*bounded)
	if !ok || len(b.first) < 3 || x.plain != "" {
		return
	}
	line, _, _ := strings.Cut(string(b.first), "\r")
	line, _, _ = strings.Cut(line, "\n")
	if line != "" && !strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
		x.plain = clean(line)
	}
}

// short drops what everybody knows from a network error.
func short(err error) error {
	var ne net.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ne) && ne.Timeout():
		return errors.New("no answer in time")
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the server closed the connection")
	case strings.Contains(err.Error(), "connection reset"):
		return errors.New("the server reset the connection")
	}
	return err
}

// gone reports whether to ask once more makes no sense.
func (x *examination) gone() bool { return x.ctx.Err() != nil }

// Write prints the report for people.
func (r *ServerReport) Write(w io.Writer) error {
	fmt.Fprintf(w, "%s (%s), server name %s\n", clean(r.Address), r.Remote, clean(r.ServerName))
	half(w, "TLS", r.TLS.Versions, r.TLS.ALPN, r.TLS.ClientCert, r.TLS.Resumption)
	writeCerts(w, r.TLS.Certificates)
	half(w, "TLCP", r.TLCP.Suites, r.TLCP.ALPN, r.TLCP.ClientCert, r.TLCP.Resumption)
	writeCerts(w, r.TLCP.Certificates)
	fmt.Fprintln(w)
	return r.Findings.Write(w)
}

func half(w io.Writer, name string, offers []Offer, alpn, client string, resumes bool) {
	for _, o := range offers {
		mark := "no "
		if o.Taken {
			mark = "yes"
		}
		fmt.Fprintf(w, "%-4s %s %-20s %s\n", name, mark, o.Name, o.Detail)
	}
	if !slices.ContainsFunc(offers, func(o Offer) bool { return o.Taken }) {
		return
	}
	if alpn == "" {
		alpn = "none"
	}
	fmt.Fprintf(w, "%-4s ALPN %s · client certificate %s · resumption %v\n", name, alpn, client, resumes)
}
