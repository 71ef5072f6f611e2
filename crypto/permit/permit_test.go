package permit

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

var root = Root{1, 2, 3}

func TestTicketsDifferByTimeGatewayAndDevice(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	keys := root.Times(now, time.Hour)
	seen := map[[8]byte]string{}
	for i, k := range keys {
		if err := k.Check(); err != nil {
			t.Fatal(err)
		}
		for _, who := range [][2]string{{"GW1", "D1"}, {"GW1", "D2"}, {"GW2", "D1"}, {"GW1D", "1"}} {
			name := fmt.Sprint(i, who)
			ticket := k.Ticket(who[0], who[1])
			if ticket.Alias[0] < 0x80 {
				t.Errorf("%s: alias %x", name, ticket.Alias)
			}
			if was, twice := seen[ticket.Alias]; twice {
				t.Errorf("%s and %s have one alias", was, name)
			}
			seen[ticket.Alias] = name
			if again := k.Ticket(who[0], who[1]); again != ticket {
				t.Errorf("%s: another ticket the second time", name)
			}
		}
	}
	if other := (Root{1, 2, 4}).Times(now, time.Hour)[0].Ticket("GW1", "D1"); seen[other.Alias] != "" {
		t.Error("another root has the same alias")
	}
}

func TestTimesOverlap(t *testing.T) {
	for _, now := range []time.Time{time.Unix(1_800_000_000, 0), time.Unix(1_800_003_599, 0), time.Unix(1_800_003_600, 1)} {
		k := root.Times(now, time.Hour)
		if now.Before(k[0].From) || !now.Before(k[0].Until) || !k[1].From.Before(k[0].Until) || k[1].From.Before(now.Add(-time.Hour)) {
			t.Errorf("at %v: %v to %v, then %v", now, k[0].From, k[0].Until, k[1].From)
		}
	}
	if a, b := root.Times(time.Unix(1_800_000_000, 0), time.Hour), root.Times(time.Unix(1_800_003_600, 0), time.Hour); a[1].Ticket("G", "D") != b[0].Ticket("G", "D") {
		t.Error("the next time's ticket is not the later one's")
	}
}

func TestNoKeyInTexts(t *testing.T) {
	k := root.Times(time.Unix(1_800_000_000, 0), time.Hour)[0]
	ticket := k.Ticket("GW1", "D1")
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%v", ticket), ticket.String()} {
		if strings.Contains(s, fmt.Sprint(ticket.Gate[0])+" ") || strings.Contains(s, "key:") {
			t.Errorf("text %q", s)
		}
	}
	raw, err := json.Marshal(ticket)
	if err != nil {
		t.Fatal(err)
	}
	var back Ticket
	if err := json.Unmarshal(raw, &back); err != nil || back != ticket {
		t.Errorf("%s: %v", raw, err)
	}
}
