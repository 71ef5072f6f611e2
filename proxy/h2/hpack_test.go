package h2

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

func TestFieldsAreWhatADecoderReads(t *testing.T) {
	names := []string{
		"accept-ranges", "access-control-allow-origin", "age", "allow", "cache-control", "content-disposition", "content-encoding", "content-language",
		"content-length", "content-location", "content-range", "content-type", "date", "etag", "expires", "last-modified", "link", "location", "refresh",
		"retry-after", "server", "set-cookie", "strict-transport-security", "vary", "via", "www-authenticate",
		"x-request-id", strings.Repeat("n", 126), strings.Repeat("n", 127), strings.Repeat("n", 128), strings.Repeat("n", 5000),
	}
	values := []string{"", "v", "玉门", strings.Repeat("v", 126), strings.Repeat("v", 127), strings.Repeat("v", 255), strings.Repeat("v", 70000)}
	var want []hpack.HeaderField
	b := []byte{emptyTable}
	for _, status := range []int{100, 200, 204, 206, 302, 304, 400, 404, 500, 599} {
		b = appendStatus(b, status)
		want = append(want, hpack.HeaderField{Name: ":status", Value: string([]byte{'0' + byte(status/100), '0' + byte(status/10%10), '0' + byte(status%10)})})
	}
	for _, n := range names {
		for _, v := range values {
			b = appendField(b, n, v)
			want = append(want, hpack.HeaderField{Name: n, Value: v, Sensitive: n == "set-cookie"})
		}
	}
	got, err := hpack.NewDecoder(4096, nil).DecodeFull(b)
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("%d fields of %d, %v", len(got), len(want), err)
	}
	if got, err := hpack.NewDecoder(0, nil).DecodeFull(appendField(nil, "x", "a\r\nb\x00")); err != nil || got[0].Value != "a  b " {
		t.Errorf("control characters: %q, %v", got, err)
	}
}
