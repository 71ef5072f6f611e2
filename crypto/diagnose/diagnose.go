// Package diagnose finds out what is wrong with certificates and with servers
// of TLS and TLCP, and says it to people in English and Chinese with a remedy:
// which of the two certificates of a TLCP party is wrong and how ([CheckPair],
// [CheckFiles]), and what a server speaks ([Server]).
//
// What is examined is not trusted, not even to be well-formed. Nothing here
// decides who may come in.
package diagnose

import (
	"fmt"
	"io"
	"strings"

	"github.com/yumen-zt/yumen/internal/audit"
)

// Level is how much a finding matters.
type Level string

// The levels.
const (
	Fault   Level = "fault"   // peers will refuse this, or should
	Warning Level = "warning" // works with most, or not for long
	Note    Level = "note"    // worth to know
	Good    Level = "good"    // as it must be
)

// Finding is one thing that was found, in both languages.
type Finding struct {
	Level         Level  `json:"level"`
	Code          string `json:"code"` // stable name
	English       string `json:"en"`
	Chinese       string `json:"zh"`
	Remedy        string `json:"remedy_en,omitempty"`
	RemedyChinese string `json:"remedy_zh,omitempty"`
}

// Findings are what was found, in the order of the examination.
type Findings []Finding

// Count returns how many findings have this level.
func (f Findings) Count(l Level) int {
	n := 0
	for _, x := range f {
		if x.Level == l {
			n++
		}
	}
	return n
}

// Has reports whether a finding has this code.
func (f Findings) Has(code string) bool {
	for _, x := range f {
		if x.Code == code {
			return true
		}
	}
	return false
}

// Err returns an error that counts the faults, nil when there is none.
func (f Findings) Err(what string) error {
	if n := f.Count(Fault); n > 0 {
		return fmt.Errorf("%s: %d found wrong (see above; 发现 %d 处错误)", what, n, n)
	}
	return nil
}

// add appends the finding of the catalogue. Arguments that are texts of both
// languages appear in that of the sentence; strings are made safe to print.
func (f *Findings) add(code string, args ...any) {
	e, ok := catalogue[code]
	if !ok {
		panic("diagnose: no text for " + code) // a fault of this package, found by its tests
	}
	en, zh := make([]any, len(args)), make([]any, len(args))
	for i, a := range args {
		switch a := a.(type) {
		case both:
			en[i], zh[i] = a.en, a.zh
		case string:
			s := clean(a)
			en[i], zh[i] = s, s
		case error:
			s := clean(a.Error())
			en[i], zh[i] = s, s
		default:
			en[i], zh[i] = a, a
		}
	}
	*f = append(*f, Finding{
		Level: e.level, Code: code, English: text(e.en, en), Chinese: text(e.zh, zh),
		Remedy: text(e.remedyEN, en), RemedyChinese: text(e.remedyZH, zh),
	})
}

// text formats with those arguments that the format names.
func text(format string, args []any) string {
	if !strings.Contains(format, "%") {
		return format
	}
	return fmt.Sprintf(format, args...)
}

// both is a word in both languages.
type both struct{ en, zh string }

const maxText = 300 // bytes of a text that came from outside

func clean(s string) string { return audit.Clean(s, maxText) }

// Write prints the findings for people.
func (f Findings) Write(w io.Writer) error {
	for _, x := range f {
		if _, err := fmt.Fprintf(w, "%-7s %s  [%s]\n        %s\n", levelWord[x.Level], x.English, x.Code, x.Chinese); err != nil {
			return err
		}
		if x.Remedy != "" {
			if _, err := fmt.Fprintf(w, "        → %s\n        → %s\n", x.Remedy, x.RemedyChinese); err != nil {
				return err
			}
		}
	}
	return nil
}

var levelWord = map[Level]string{Fault: "FAULT", Warning: "warning", Note: "note", Good: "good"}
