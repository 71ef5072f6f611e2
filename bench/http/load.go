//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"time"
)

// wrk returns a closed loop over HTTP/1.1 with so many connections.
func wrk(conns int, path string) func(context.Context, *bench, *peer, time.Duration) (sample, error) {
	return func(ctx context.Context, b *bench, p *peer, d time.Duration) (sample, error) {
		out, err := tool(ctx, "wrk", "-t1", "-c"+strconv.Itoa(conns), "-d"+seconds(d), "--latency",
			"-H", "Cookie: "+b.cookie, p.url()+path)
		if err != nil {
			return sample{}, err
		}
		return parseWrk(out)
	}
}

// h2load returns a closed loop over HTTP/2.
func h2load(conns, streams int, path string) func(context.Context, *bench, *peer, time.Duration) (sample, error) {
	return func(ctx context.Context, b *bench, p *peer, d time.Duration) (sample, error) {
		out, err := tool(ctx, "h2load", "-t1", "-c"+strconv.Itoa(conns), "-m"+strconv.Itoa(streams), "-D"+seconds(d),
			"-H", "cookie: "+b.cookie, "--connect-to="+p.addr(), p.url()+path)
		if err != nil {
			return sample{}, err
		}
		return parseH2load(out)
	}
}

func seconds(d time.Duration) string {
	return strconv.Itoa(max(1, int(d.Round(time.Second)/time.Second)))
}

// tool runs a load generator to its end.
func tool(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("run %s: %w\n%s", name, err, out)
	}
	return string(out), nil
}

var (
	wrkTotal   = regexp.MustCompile(`(\d+) requests in ([\d.]+(?:us|ms|s|m))`)
	wrkErrors  = regexp.MustCompile(`Socket errors:.*|Non-2xx or 3xx responses:.*`)
	wrkLatency = regexp.MustCompile(`(?m)^\s+(50|99)%\s+([\d.]+(?:us|ms|s|m))`)
	h2Total    = regexp.MustCompile(`finished in ([\d.]+(?:us|ms|s|m)), ([\d.]+) req/s`)
	h2Done     = regexp.MustCompile(`requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`)
	h2Codes    = regexp.MustCompile(`status codes: (\d+) 2xx, `)
)

// parseWrk reads wrk's report. An answer that is not a good one fails it.
func parseWrk(out string) (s sample, err error) {
	if bad := wrkErrors.FindString(out); bad != "" {
		return s, fmt.Errorf("wrk: %s", bad)
	}
	m := wrkTotal.FindStringSubmatch(out)
	if m == nil {
		return s, fmt.Errorf("read report of wrk: no total in\n%s", out)
	}
	if s.requests, err = strconv.Atoi(m[1]); err != nil {
		return s, fmt.Errorf("read report of wrk: %w", err)
	}
	d, err := time.ParseDuration(m[2])
	if err != nil || d <= 0 {
		return s, fmt.Errorf("read report of wrk: time %q", m[2])
	}
	s.rate = float64(s.requests) / d.Seconds()
	for _, m := range wrkLatency.FindAllStringSubmatch(out, -1) {
		d, err := time.ParseDuration(m[2])
		if err != nil {
			return s, fmt.Errorf("read report of wrk: %w", err)
		}
		if m[1] == "50" {
			s.p50 = d
		} else {
			s.p99 = d
		}
	}
	return s, nil
}

// parseH2load reads h2load's report. An answer that is not a good one fails it.
func parseH2load(out string) (s sample, err error) {
	total, done, codes := h2Total.FindStringSubmatch(out), h2Done.FindStringSubmatch(out), h2Codes.FindStringSubmatch(out)
	if total == nil || done == nil || codes == nil {
		return s, fmt.Errorf("read report of h2load: no total in\n%s", out)
	}
	if done[2] != "0" || done[3] != "0" || done[4] != "0" {
		return s, fmt.Errorf("h2load: %s", done[0])
	}
	var e1, e2, e3 error
	var good int
	s.requests, e1 = strconv.Atoi(done[1])
	s.rate, e2 = strconv.ParseFloat(total[2], 64)
	good, e3 = strconv.Atoi(codes[1])
	if err := errors.Join(e1, e2, e3); err != nil {
		return s, fmt.Errorf("read report of h2load: %w", err)
	}
	if good < s.requests { // streams that were open at the end have a status and no end
		return s, fmt.Errorf("h2load: %d of %d answers are 2xx", good, s.requests)
	}
	return s, nil
}
