package ctlclient

import (
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/yumen-zt/yumen/wire"
)

// rowFacts are the checked facts of one row; nil when it has none.
type rowFacts struct {
	wire.RowFacts
	authTime time.Time
}

func (f *rowFacts) into(g *GrantRow) {
	if f == nil {
		return
	}
	g.Level, g.Factors, g.AuthTime, g.Posture, g.Risk = f.Level, f.Factors, f.authTime, f.Posture, f.Risk
}

// digest hashes g with the facts.
func (f *rowFacts) digest(g *wire.Grant) [32]byte {
	if f == nil {
		return wire.GrantDigest(g, nil)
	}
	return wire.GrantDigest(g, &f.RowFacts)
}

// readFacts reads header.ext.rows of a page with n rows. A fault in the shape
// of the whole is an error; a bad value is a fault of its row.
func readFacts(raw jsontext.Value, n int) (facts map[int]*rowFacts, faults map[int]error, err error) {
	if raw == nil {
		return nil, nil, nil
	}
	var rows []wire.RowFacts
	if err := json.Unmarshal(raw, &rows); err != nil {
		return nil, nil, fmt.Errorf("read row facts: %w", err)
	}
	return indexFacts(rows, n)
}

// indexFacts checks rows and returns them by index.
func indexFacts(rows []wire.RowFacts, n int) (facts map[int]*rowFacts, faults map[int]error, err error) {
	facts = make(map[int]*rowFacts, len(rows))
	faults = map[int]error{}
	for _, r := range rows {
		if r.I < 0 || r.I >= n {
			return nil, nil, fmt.Errorf("read row facts: row %d of %d", r.I, n)
		}
		if facts[r.I] != nil {
			return nil, nil, fmt.Errorf("read row facts: row %d twice", r.I)
		}
		f := &rowFacts{RowFacts: r}
		facts[r.I] = f
		if err := f.check(); err != nil {
			faults[r.I] = fmt.Errorf("facts: %w", err)
		}
	}
	return facts, faults, nil
}

func (f *rowFacts) check() error {
	if f.AuthTime != "" {
		t, err := wire.ParseTime(f.AuthTime)
		if err != nil {
			return fmt.Errorf("authTime: %w", err)
		}
		f.authTime = t
	}
	percent := func(p *int) bool { return p == nil || *p >= 0 && *p <= 100 }
	switch {
	case f.Level < 0 || f.Level > 255:
		return fmt.Errorf("level %d", f.Level)
	case !percent(f.Posture):
		return fmt.Errorf("posture %d", *f.Posture)
	case !percent(f.Risk):
		return fmt.Errorf("risk %d", *f.Risk)
	case slices.ContainsFunc(f.Factors, func(t int) bool { return t < 1 || t > 99 }):
		return fmt.Errorf("factors %v", f.Factors)
	}
	return nil
}
