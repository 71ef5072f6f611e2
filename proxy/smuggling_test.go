package proxy

import (
	"fmt"
	"strings"
	"testing"
)

// TestS9_SmugglingCorpus sends ambiguous HTTP/1.1 over a real socket. Each
// case must be refused with 400 (or the connection closed), and the upstream,
// which records bytes, must see no request but the legitimate ones.
func TestS9_SmugglingCorpus(t *testing.T) {
	const h = "Host: " + host + "\r\n"
	smuggled := "GET /smuggled HTTP/1.1\r\n" + h + "\r\n"
	post := func(fields, body string) string { return "POST /legit HTTP/1.1\r\n" + h + fields + "\r\n" + body }
	te := func(line string) string { return post(line+"\r\n", "5\r\nhello\r\n0\r\n\r\n") + smuggled }
	both := func(line string) string { return post("Content-Length: 4\r\n"+line+"\r\n", "0\r\n\r\n"+smuggled) }

	cases := map[string]string{
		"CL.TE":                    both("Transfer-Encoding: chunked"),
		"TE.CL":                    post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n"+smuggled),
		"CL 0 with TE":             post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+smuggled),
		"TE space before colon":    te("Transfer-Encoding : chunked"),
		"TE tab before colon":      te("Transfer-Encoding\t: chunked"),
		"TE identity and CL":       both("Transfer-Encoding: identity"),
		"TE xchunked":              both("Transfer-Encoding: xchunked"),
		"TE chunked twice in list": both("Transfer-Encoding: chunked, chunked"),
		"TE twice":                 te("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
		"TE chunked and identity":  te("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
		"TE gzip, chunked":         te("Transfer-Encoding: gzip, chunked"),
		"TE chunked, gzip":         te("Transfer-Encoding: chunked, gzip"),
		"TE quoted":                te(`Transfer-Encoding: "chunked"`),
		"TE empty":                 te("Transfer-Encoding:"),
		"TE comma":                 te("Transfer-Encoding: ,chunked"),
		"TE vertical tab":          te("Transfer-Encoding: \x0bchunked"),
		"TE NUL":                   te("Transfer-Encoding: chunked\x00"),
		"TE parameter":             te("Transfer-Encoding: chunked;x=1"),
		"TE folded":                both("Transfer-Encoding:\r\n chunked"),
		"TE folded by tab":         both("Transfer-Encoding:\r\n\tchunked"),
		"TE leading space name":    both(" Transfer-Encoding: chunked"),
		"TE underscore":            post("Content-Length: 5\r\nTransfer_Encoding: chunked\r\n", "0\r\n\r\n"),
		"TE after bare LF":         both("X: y\nTransfer-Encoding: chunked"),
		"TE after bare CR":         both("X: y\rTransfer-Encoding: chunked"),
		"TE high byte in name":     te("Transfer-Encoding\xff: chunked"),
		"TE in HTTP/1.0":           "POST /legit HTTP/1.0\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"TE in HTTP/1.0 keep":      "POST /legit HTTP/1.0\r\n" + h + "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,

		"CL list":           post("Content-Length: 5, 5\r\n", "hello"),
		"CL list differ":    post("Content-Length: 5, 6\r\n", "hello"),
		"CL twice same":     post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
		"CL twice differ":   post("Content-Length: 5\r\nContent-Length: 0\r\n", "hello"),
		"CL plus":           post("Content-Length: +5\r\n", "hello"),
		"CL minus":          post("Content-Length: -5\r\n", "hello"),
		"CL hex":            post("Content-Length: 0x5\r\n", "hello"),
		"CL overflow":       post("Content-Length: 18446744073709551617\r\n", "h"+smuggled),
		"CL empty":          post("Content-Length:\r\n", "hello"),
		"CL space inside":   post("Content-Length: 5 0\r\n", "hello"),
		"CL space at colon": post("Content-Length : 5\r\n", "hello"),
		"CL folded":         post("Content-Length:\r\n 5\r\n", "hello"),
		"CL decimal point":  post("Content-Length: 5.0\r\n", "hello"),
		"CL NUL":            post("Content-Length: 5\x00\r\n", "hello"),
		"CL underscore":     post("Content_Length: 5\r\nContent-Length: 0\r\n", "hello"),

		"chunk 0x":             post("Transfer-Encoding: chunked\r\n", "0x5\r\nhello\r\n0\r\n\r\n"),
		"chunk plus":           post("Transfer-Encoding: chunked\r\n", "+5\r\nhello\r\n0\r\n\r\n"),
		"chunk minus":          post("Transfer-Encoding: chunked\r\n", "-5\r\nhello\r\n0\r\n\r\n"),
		"chunk overflow":       post("Transfer-Encoding: chunked\r\n", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
		"chunk LF":             post("Transfer-Encoding: chunked\r\n", "5\nhello\n0\n\n"),
		"chunk ext LF":         post("Transfer-Encoding: chunked\r\n", "5;x\nhello\r\n0\r\n\r\n"),
		"chunk ext":            post("Transfer-Encoding: chunked\r\n", "5;x=y\r\nhello\r\n0\r\n\r\n"),
		"chunk ext CR":         post("Transfer-Encoding: chunked\r\n", "5;\rx\r\nhello\r\n0\r\n\r\n"),
		"chunk space":          post("Transfer-Encoding: chunked\r\n", "5 \r\nhello\r\n0\r\n\r\n"),
		"chunk leading space":  post("Transfer-Encoding: chunked\r\n", " 5\r\nhello\r\n0\r\n\r\n"),
		"chunk empty size":     post("Transfer-Encoding: chunked\r\n", "\r\nhello\r\n0\r\n\r\n"),
		"chunk no CRLF":        post("Transfer-Encoding: chunked\r\n", "5\r\nhelloXX0\r\n\r\n"),
		"chunk longer":         post("Transfer-Encoding: chunked\r\n", "5\r\nhello world\r\n0\r\n\r\n"),
		"trailer CL":           post("Transfer-Encoding: chunked\r\n", "0\r\nContent-Length: 5\r\n\r\n"),
		"trailer TE":           post("Transfer-Encoding: chunked\r\n", "0\r\nTransfer-Encoding: chunked\r\n\r\n"),
		"trailer Host":         post("Transfer-Encoding: chunked\r\n", "0\r\nHost: other.example.test\r\n\r\n"),
		"trailer malformed":    post("Transfer-Encoding: chunked\r\n", "0\r\nx y\r\n\r\n"),
		"trailer folded":       post("Transfer-Encoding: chunked\r\n", "0\r\nX: a\r\n b\r\n\r\n"),
		"trailer bare LF":      post("Transfer-Encoding: chunked\r\n", "0\r\n\n"),
		"GET with body CL+TE":  "GET /legit HTTP/1.1\r\n" + h + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two hosts":            "GET /legit HTTP/1.1\r\n" + h + h + "\r\n",
		"two hosts differ":     "GET /legit HTTP/1.1\r\n" + h + "Host: other.example.test\r\n\r\n",
		"no host":              "GET /legit HTTP/1.1\r\n\r\n",
		"no host 1.0":          "GET /legit HTTP/1.0\r\n\r\n",
		"host space at colon":  "GET /legit HTTP/1.1\r\nHost : " + host + "\r\n\r\n",
		"leading space header": "GET /legit HTTP/1.1\r\n X: y\r\n" + h + "\r\n",
		"leading CRLF":         "\r\nGET /legit HTTP/1.1\r\n" + h + "\r\n",
		"bare LF lines":        "GET /legit HTTP/1.1\n" + strings.ReplaceAll(h, "\r\n", "\n") + "\n",
		"bare LF end":          "GET /legit HTTP/1.1\r\n" + h + "\n",
		"bare CR in value":     "GET /legit HTTP/1.1\r\n" + h + "X: a\rb\r\n\r\n",
		"NUL in value":         "GET /legit HTTP/1.1\r\n" + h + "X: a\x00b\r\n\r\n",
		"no colon":             "GET /legit HTTP/1.1\r\n" + h + "X\r\n\r\n",
		"empty name":           "GET /legit HTTP/1.1\r\n" + h + ": x\r\n\r\n",
		"space in name":        "GET /legit HTTP/1.1\r\n" + h + "X Y: x\r\n\r\n",
		"space in target":      "GET /legit /x HTTP/1.1\r\n" + h + "\r\n",
		"tab in request line":  "GET\t/legit\tHTTP/1.1\r\n" + h + "\r\n",
		"two spaces":           "GET  /legit HTTP/1.1\r\n" + h + "\r\n",
		"version 1.2":          "GET /legit HTTP/1.2\r\n" + h + "\r\n",
		"version 2.0":          "GET /legit HTTP/2.0\r\n" + h + "\r\n",
		"version 0.9":          "GET /legit\r\n",
		"version lower case":   "GET /legit http/1.1\r\n" + h + "\r\n",
		"h2 preface":           "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"method with colon":    "GET: /legit HTTP/1.1\r\n" + h + "\r\n",
		"absolute form":        "GET https://" + host + "/legit HTTP/1.1\r\n" + h + "\r\n",
		"absolute form other":  "GET https://other.example.test/legit HTTP/1.1\r\n" + h + "\r\n",
		"pipelined CL.TE":      "POST /ok HTTP/1.1\r\n" + h + "Content-Length: 2\r\n\r\nok" + both("Transfer-Encoding: chunked"),
	}
	for c := range 0x80 {
		if c >= 0x20 && c < 0x7f || c == '\t' {
			continue
		}
		cases[fmt.Sprintf("TE behind %#02x", c)] = te(fmt.Sprintf("Transfer-Encoding: %cchunked", c))
		cases[fmt.Sprintf("TE before %#02x", c)] = te(fmt.Sprintf("Transfer-Encoding: chunked%c", c))
		if c != '\n' {
			cases[fmt.Sprintf("TE name and %#02x", c)] = te(fmt.Sprintf("Transfer-Encoding%c: chunked", c))
		}
		cases[fmt.Sprintf("CL before %#02x", c)] = post(fmt.Sprintf("Content-Length: 5%c\r\n", c), "hello")
	}
	delete(cases, "TE before 0x0d") // CR CR LF, which is above as a bare CR
	delete(cases, "CL before 0x0d")
	for name, value := range map[string]string{"no-break space": "\u00a0chunked", "kelvin": "chun\u212aed", "high byte": "chunked\xa0", "comma behind": "chunked,",
		"two commas": "chunked,,", "deflate": "deflate", "trailers": "trailers", "cow": "cow", "chunk": "chunk", "semicolon": "chunked;", "two words": "chunked chunked",
		"identity, chunked": "identity, chunked", "single quotes": "'chunked'", "brackets": "<chunked>", "encoded": "chunke%64"} {
		cases["TE value "+name] = te("Transfer-Encoding: " + value)
		cases["TE value and CL "+name] = both("Transfer-Encoding: " + value)
	}
	for name, size := range map[string]string{"h": "5h", "underscore": "5_0", "quote": `"5"`, "dot": "5.", "tab": "5\t", "exponent": "5e-1", "utf-8": "\u0665", "NUL": "5\x00", "comma": "5,5",
		"16 digits": "0000000000000005", "semicolon": "5;", "CR": "5\r", "two lines": "5\r\n\r", "minus zero": "-0", "blank": " "} {
		cases["chunk size "+name] = post("Transfer-Encoding: chunked\r\n", size+"\r\nhello\r\n0\r\n\r\n"+smuggled)
	}
	for name, target := range map[string]string{"NUL": "/legit\x00", "CR": "/legit\rX", "high": "/legit\xff", "quote": `/legit"`, "fragment": "/legit#x", "no slash": "legit", "user": "//a@b/legit"[1:] + "\\"} {
		cases["target "+name] = "GET " + target + " HTTP/1.1\r\n" + h + "\r\n"
	}
	if len(cases) < 250 {
		t.Fatalf("%d cases, at least 250 wanted", len(cases))
	}
	rec := newRecorder(t)
	f := newFixture(t, rec.url())
	paths := map[string]string{} // of each case: its own
	for name, raw := range cases {
		path := fmt.Sprintf("/legit/%d", len(paths))
		paths[path] = name
		status, closed, rest := f.exchange(host, strings.ReplaceAll(raw, "/legit", path), true)
		switch {
		case strings.HasPrefix(name, "pipelined"):
			// The first may be served, or given up with the connection.
			if status == 200 && !strings.Contains(rest, "400 Bad Request") {
				t.Errorf("%s: rest %q, want a 400 for the second", name, rest)
			}
		case name == "absolute form other" && status == 421:
		case status != 400 && status != 0 && status != 505:
			t.Errorf("%s: status %d, want 400", name, status)
		}
		if !closed {
			t.Errorf("%s: the connection stays open after status %d", name, status)
		}
	}
	// A fence: what was sent before it has arrived when it has been answered.
	status, _, body := f.exchange(host, "GET /fence HTTP/1.1\r\n"+h+"Connection: close\r\n\r\n", false)
	if status != 200 || body != "ok" {
		t.Errorf("an honest request: %d %q", status, body)
	}
	for path, name := range paths {
		want := 0
		if strings.HasPrefix(name, "chunk") || strings.HasPrefix(name, "trailer") {
			want = 1 // a good head with a bad body reaches the upstream as one request, cut short
		}
		if n, _ := rec.seen(path); n > want {
			t.Errorf("%s: %d requests reached the upstream, at most %d wanted", name, n, want)
		}
	}
	if n, all := rec.seen("/smuggled"); n > 0 || strings.Contains(all, "smuggled") {
		t.Errorf("the upstream saw the smuggled request:\n%s", all)
	}
	t.Logf("%d cases", len(cases))
}

// What is the body of a legitimate request stays that, whatever the head says
// beside it: the upstream sees one request, and no other in its body.
func TestS9_BodiesStayBodies(t *testing.T) {
	const h = "Host: " + host + "\r\n"
	hidden := "GET /hidden HTTP/1.1\r\n" + h + "\r\n"
	length := fmt.Sprintf("Content-Length: %d\r\n", len(hidden))
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(hidden), hidden)
	rec := newRecorder(t)
	f := newFixture(t, rec.url())
	n := 0
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"} {
		for _, fields := range []string{"", "Connection: Content-Length\r\n", "Connection: Transfer-Encoding, close\r\n", "Connection: Host, Content-Type\r\n", "Expect: 100-continue\r\n",
			"TE: trailers, chunked\r\nConnection: TE\r\n", "Trailer: Content-Length, Transfer-Encoding\r\n", "X-HTTP-Method-Override: GET\r\n", "Proxy-Connection: keep-alive\r\n", "Max-Forwards: 0\r\n"} {
			for _, framed := range []string{length + "\r\n" + hidden, "Transfer-Encoding: chunked\r\n\r\n" + chunked} {
				n++
				path := fmt.Sprintf("/body/%d", n)
				status, _, _ := f.exchange(host, method+" "+path+" HTTP/1.1\r\n"+h+fields+framed, true)
				if got, _ := rec.seen(path); got > 1 || status == 200 && got != 1 {
					t.Errorf("%s %q %q: status %d, %d requests at the upstream", method, fields, framed, status, got)
				}
			}
		}
	}
	if got, _ := rec.seen("/hidden"); got > 0 {
		t.Errorf("%d bodies became requests", got)
	}
	t.Logf("%d cases", n)
}

// The guard must not stand in the way of what honest clients send.
func TestS9_HonestRequestsPass(t *testing.T) {
	rec := newRecorder(t)
	f := newFixture(t, rec.url())
	h := "Host: " + host + "\r\n"
	for name, raw := range map[string]string{
		"get":             "GET /a?b=c HTTP/1.1\r\n" + h + "\r\n",
		"post":            "POST /a HTTP/1.1\r\n" + h + "Content-Length: 5\r\n\r\nhello",
		"post lower case": "POST /a HTTP/1.1\r\nhost: " + host + "\r\ncontent-length: 5\r\n\r\nhello",
		"chunked":         "POST /a HTTP/1.1\r\n" + h + "Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0A\r\n0123456789\r\n0\r\n\r\n",
		"chunk trailers":  "POST /a HTTP/1.1\r\n" + h + "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
		"no space":        "GET /a HTTP/1.1\r\nHost:" + host + "\r\n\r\n",
		"empty value":     "GET /a HTTP/1.1\r\n" + h + "X:\r\n\r\n",
		"utf-8 value":     "GET /a HTTP/1.1\r\n" + h + "X: 玉门\r\n\r\n",
		"1.0":             "GET /a HTTP/1.0\r\n" + h + "\r\n",
		"expect":          "POST /a HTTP/1.1\r\n" + h + "Content-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			// Twice on one connection, cut into single bytes the second time.
			c := f.raw(host)
			defer c.Close()
			for i, part := range []int{len(raw), 1} {
				if name == "1.0" && i == 1 {
					break
				}
				for at := 0; at < len(raw); at += part {
					if _, err := c.Write([]byte(raw[at:min(at+part, len(raw))])); err != nil {
						t.Fatal(err)
					}
				}
				buf := make([]byte, 4096)
				n, err := c.Read(buf)
				if err != nil || !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 200") && !strings.HasPrefix(string(buf[:n]), "HTTP/1.0 200") {
					t.Fatalf("round %d: %q, %v", i, buf[:n], err)
				}
				if !strings.HasSuffix(string(buf[:n]), "ok") {
					more := make([]byte, 2)
					_, _ = c.Read(more)
				}
			}
		})
	}
}
