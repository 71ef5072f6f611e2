package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/go-json-experiment/json"
)

// Client asks a running agent over its socket: the verbs of `yumen agent`. Its
// methods may be called from any goroutine.
type Client struct {
	http   *http.Client
	socket string
}

// NewClient returns a client of the agent behind the unix socket.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns the agent's state.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return ask[Status](ctx, c, "GET", "/v1/status", nil)
}

// Resources returns what may be reached now.
func (c *Client) Resources(ctx context.Context) ([]*Resource, error) {
	rs, err := ask[[]*Resource](ctx, c, "GET", "/v1/resources", nil)
	if err != nil {
		return nil, err
	}
	return *rs, nil
}

// Why asks what would happen to a connection to an application.
func (c *Client) Why(ctx context.Context, appID string) (*Why, error) {
	return ask[Why](ctx, c, "GET", "/v1/why?app="+url.QueryEscape(appID), nil)
}

// Login signs a user in. A refusal is an Answer that is not OK.
func (c *Client) Login(ctx context.Context, q LoginRequest) (*Answer, error) {
	return ask[Answer](ctx, c, "POST", "/v1/login", &q)
}

// Logout signs the user out.
func (c *Client) Logout(ctx context.Context) (*Answer, error) {
	return ask[Answer](ctx, c, "POST", "/v1/logout", nil)
}

// Stop asks the agent to end in order. It returns before it has.
func (c *Client) Stop(ctx context.Context) (*Answer, error) {
	return ask[Answer](ctx, c, "POST", "/v1/stop", nil)
}

func ask[T any](ctx context.Context, c *Client, method, path string, body any) (*T, error) {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("ask agent: %w", err)
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, in)
	if err != nil {
		return nil, fmt.Errorf("ask agent: %w", err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask agent at %s: %w (is it running? yumen agent run)", c.socket, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask agent: it answered %s", res.Status)
	}
	v := new(T)
	if err := json.UnmarshalRead(io.LimitReader(res.Body, 16<<20), v); err != nil {
		return nil, fmt.Errorf("read agent's answer: %w", err)
	}
	return v, nil
}
