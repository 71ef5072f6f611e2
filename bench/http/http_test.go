//go:build linux

package main

import (
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

const wrkReport = `Running 3s test @ https://localhost:1/1k
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   600.10us  120.00us   9.10ms   90.00%
    Req/Sec    51.00k     1.00k   55.00k    80.00%
  Latency Distribution
     50%  568.00us
     75%  700.00us
     90%    0.90ms
     99%    1.33ms
  326123 requests in 3.00s, 420.00MB read
Requests/sec: 108707.66
`

func TestWrkReportIsRead(t *testing.T) {
	s, err := parseWrk(wrkReport)
	if err != nil {
		t.Fatal(err)
	}
	if s.requests != 326123 || s.rate < 108707 || s.rate > 108708 || s.p50 != 568*time.Microsecond || s.p99 != 1330*time.Microsecond {
		t.Fatalf("got %+v", s)
	}
}

func TestAnswersThatAreNotGoodFailARound(t *testing.T) {
	const h2 = "finished in 3.00s, 95048.00 req/s, 105.10MB/s\n" +
		"requests: 285144 total, 285464 started, 285144 done, 285144 succeeded, 0 failed, 0 errored, 0 timeout\n" +
		"status codes: 285144 2xx, 0 3xx, 0 4xx, 0 5xx\n"
	s, err := parseH2load(h2)
	if err != nil || s.requests != 285144 || s.rate != 95048 {
		t.Fatalf("got %+v, %v", s, err)
	}
	for name, out := range map[string]string{
		"failed":         strings.Replace(h2, " 0 failed", " 1 failed", 1),
		"status":         strings.Replace(h2, "285144 2xx, 0 3xx", "285100 2xx, 44 3xx", 1),
		"without report": "connection refused",
	} {
		if s, err := parseH2load(out); err == nil {
			t.Errorf("h2load, %s: got %+v, want an error", name, s)
		}
	}
	for name, out := range map[string]string{
		"status":         wrkReport + "  Non-2xx or 3xx responses: 12\n",
		"socket errors":  wrkReport + "  Socket errors: connect 0, read 3, write 0, timeout 0\n",
		"without report": "unable to connect",
	} {
		if s, err := parseWrk(out); err == nil {
			t.Errorf("wrk, %s: got %+v, want an error", name, s)
		}
	}
}

func TestRatiosAreOfPairsInTheSameRound(t *testing.T) {
	cpu := func(us ...int) (out []sample) {
		for _, v := range us {
			out = append(out, sample{cpu: time.Duration(v) * time.Microsecond})
		}
		return out
	}
	// The machine doubles its price for both: the ratio stays.
	got := ratio(cpu(20, 40, 30), cpu(10, 20, 10), func(s sample) float64 { return micros(s.cpu) })
	if want := (spread{2, 2, 3}); got != want {
		t.Fatalf("got %v, want %v", got, want)
	}
	if got, want := spreadOf([]float64{4, 1, 3, 2}), (spread{2.5, 1, 4}); got != want {
		t.Fatalf("median of four: got %v, want %v", got, want)
	}
}

func TestApplicationAnswersPipelinedAndSplitRequests(t *testing.T) {
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); answer(theirs) }()
	go func() {
		for _, part := range []string{"GET /1k HTTP/1.1\r\nHo", "st: a\r\n\r\nGET /100k HTTP/1.1\r\n\r\nGET /1k HT", "TP/1.1\r\n\r\n"} {
			if _, err := io.WriteString(ours, part); err != nil {
				return
			}
		}
	}()
	want := slices.Concat(small, large, small)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(ours, got); err != nil || !slices.Equal(got, want) {
		t.Fatalf("read %v; the answers are not the three that were asked for", err)
	}
	ours.Close()
	<-done
}

func TestOwnCPUTimeAndMemoryAreRead(t *testing.T) {
	b := &bench{dir: t.TempDir()}
	defer b.stop()
	cmd, err := b.spawn("child", nil, "sleep", "60")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{cmd: cmd}
	if _, err := p.usage(0); err != nil {
		t.Error(err)
	}
	if kib, err := p.memory("VmRSS"); err != nil || kib < 1 {
		t.Errorf("memory of a process: %d KiB, %v", kib, err)
	}
	if n, err := statusField("VmHWM:\t   10 kB\nVmRSS:\t    1234 kB\n", "VmRSS"); err != nil || n != 1234 {
		t.Errorf("VmRSS: %d, %v", n, err)
	}
}
