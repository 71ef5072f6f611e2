package policy

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// hours is the data of time: days, ranges and the zone, such as
// "1-5 0800-2000 +08". Days are 1 Monday to 7 Sunday, or *. A range that ends
// before it starts goes over midnight and belongs to the day on which it
// starts; 2400 is the end of the day. Several days or ranges are separated by
// commas: "1-5,7 0800-1200,1330-1800 +08". The zone is +HH, +HHMM or Z and must
// be there: a forgotten zone would shift the hours.
type hours struct {
	days   uint8 // bit 0 Monday ... bit 6 Sunday
	ranges []clock
	zone   int64 // seconds east of UTC
	text   string

	memo atomic.Pointer[window] // one that was found to hold; a pure result, kept
}

// window is a time in which the hours hold.
type window struct{ from, to int64 }

// clock is a range of a day in seconds since its midnight; to may be up to two
// days for a range over midnight.
type clock struct{ from, to int64 }

const daySeconds = 24 * 60 * 60

func parseHours(s string) (grammar, error) {
	f := strings.Fields(s)
	if len(f) != 3 {
		return nil, fmt.Errorf("want days, hours and zone, such as 1-5 0800-2000 +08")
	}
	h := &hours{text: strings.Join(f, " ")}
	if f[0] == "*" {
		h.days = 1<<7 - 1
	} else {
		for _, item := range list(f[0]) {
			from, to, isRange := strings.Cut(item, "-")
			if !isRange {
				to = from
			}
			a, errA := number(from, 7)
			b, errB := number(to, 7)
			if errA != nil || errB != nil || a < 1 || b < a {
				return nil, fmt.Errorf("%q is no day or range of days (1 Monday to 7 Sunday)", item)
			}
			for d := a; d <= b; d++ {
				h.days |= 1 << (d - 1)
			}
		}
	}
	for _, item := range list(f[1]) {
		from, to, _ := strings.Cut(item, "-")
		a, okA := clockSeconds(from)
		b, okB := clockSeconds(to)
		if !okA || !okB || a == b || a == daySeconds {
			return nil, fmt.Errorf("%q is no range of hours (HHMM-HHMM)", item)
		}
		if b < a {
			b += daySeconds
		}
		h.ranges = append(h.ranges, clock{a, b})
	}
	var err error
	h.zone, err = zoneSeconds(f[2])
	return h, err
}

func clockSeconds(s string) (int64, bool) {
	if len(s) != 4 {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	hh, mm := int64(n/100), int64(n%100)
	if err != nil || mm > 59 || hh > 24 || hh == 24 && mm != 0 {
		return 0, false
	}
	return hh*3600 + mm*60, true
}

func zoneSeconds(s string) (int64, error) {
	if s == "Z" {
		return 0, nil
	}
	if len(s) == 3 {
		s += "00"
	}
	if len(s) == 5 && (s[0] == '+' || s[0] == '-') {
		if n, ok := clockSeconds(s[1:]); ok && n <= 14*3600 {
			if s[0] == '-' {
				n = -n
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("%q is no zone (+08, -0330 or Z)", s)
}

// until returns when the range that holds now ends, and false when none does.
func (h *hours) until(now int64) (int64, bool) {
	if w := h.memo.Load(); w != nil && now >= w.from && now < w.to {
		return w.to, true
	}
	end, ok := h.find(now)
	if ok {
		h.memo.Store(&window{now, end})
	}
	return end, ok
}

// find is until by the calendar.
func (h *hours) find(now int64) (int64, bool) {
	sec := floorDiv(now, int64(time.Second)) + h.zone
	day := floorDiv(sec, daySeconds)
	clockNow := sec - day*daySeconds
	end, ok := int64(0), false
	for back := int64(0); back <= 1; back++ { // the range may have started yesterday
		d := day - back
		weekday := ((d+3)%7 + 7) % 7 // 1970-01-01 was a Thursday, Monday is 0
		if h.days&(1<<weekday) == 0 {
			continue
		}
		at := clockNow + back*daySeconds
		for _, r := range h.ranges {
			if at >= r.from && at < r.to {
				end, ok = max(end, (d*daySeconds+r.to-h.zone)*int64(time.Second)), true
			}
		}
	}
	return end, ok
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

func (h *hours) String() string { return h.text }
