package exchange

import "testing"

func TestControlCharactersAreFoundAnywhere(t *testing.T) {
	for at := range 24 {
		for c := range 256 {
			b := []byte("abcdefgh\tjk mn玉pqrstuvwx")[:24]
			b[at] = byte(c)
			want := c < ' ' && c != '\t' || c == 0x7f
			if HasControl(b) != want || HasControl(string(b)) != want {
				t.Errorf("%#x at %d: %v", c, at, !want)
			}
		}
	}
}
