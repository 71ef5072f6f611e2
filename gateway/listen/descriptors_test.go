package listen

import "testing"

func TestR15_ConnectionsFitTheDescriptors(t *testing.T) {
	for _, c := range []struct {
		most        int
		descriptors uint64
		want        int
	}{
		{50_000, 1 << 20, 50_000},
		{50_000, 65_536, 49_104},
		{50_000, 256, 144},
		{50, 256, 50},
		{50_000, 10, 1},
		{50_000, 1<<64 - 1, 50_000}, // no limit
	} {
		if got := byDescriptors(c.most, c.descriptors); got != c.want {
			t.Errorf("%d with %d descriptors: %d, want %d", c.most, c.descriptors, got, c.want)
		}
	}
}
