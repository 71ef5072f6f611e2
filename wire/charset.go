package wire

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// class is a set of characters that a field may hold (M103).
type class uint8

const (
	word   class = iota // ans without any space: identifiers, tokens, registry codes
	ans                 // letters, digits and symbols: printable ASCII, spaces only inside
	digits              // ns, digits and symbols: as ans, no letters (lax takes ans)
	hans                // ans, Han characters and the CJK punctuation below, spaces only inside
	hexa                // hexadecimal
)

// punctuation is what Chinese text needs besides Han characters. Full-width
// letters and digits are not in it: they imitate ASCII ones.
const punctuation = "，。、；：？！（）〔〕【】《》〈〉「」『』“”‘’—…·～￥"

// words names each class in the text of a fault.
var words = [...]string{
	word:   "a letter, digit or symbol",
	ans:    "a letter, digit or symbol",
	digits: "a digit or symbol",
	hans:   "a Chinese character, letter, digit or symbol",
	hexa:   "a hexadecimal digit",
}

// has reports whether r may stand in a text of class c.
func (c class) has(r rune) bool {
	printable := r > ' ' && r < 0x7f
	switch c {
	case word:
		return printable
	case ans:
		return printable || r == ' '
	case digits:
		return (printable || r == ' ') && !(r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z')
	case hans:
		return printable || r == ' ' || r > 0x7f && (unicode.Is(unicode.Han, r) || strings.ContainsRune(punctuation, r))
	case hexa:
		return r >= '0' && r <= '9' || r >= 'a' && r <= 'f' || r >= 'A' && r <= 'F'
	}
	return false
}

// fault returns what is wrong with the characters of s, or "".
func (c class) fault(s string) string {
	n := 0
	for i, r := range s {
		n++
		if r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD") {
			return fmt.Sprintf("character %d is not UTF-8", n)
		}
		if !c.has(r) {
			return fmt.Sprintf("character %d is U+%04X, not %s", n, r, words[c])
		}
	}
	if s != "" && (s[0] == ' ' || s[len(s)-1] == ' ') {
		return "a space at the end or the beginning"
	}
	return ""
}

// CleanText returns s in the form that a field of Chinese text takes
// (exceptionAlertContent, remark, names): line breaks and tabs become spaces,
// every other character that the field may not hold becomes a question mark,
// spaces at the ends go, and what is beyond most characters is cut off; 0 is no
// limit. Details of errors pass through it, so that no alert is lost to a
// character.
func CleanText(s string, most int) string { return hans.clean(s, most) }

// CleanResult is [CleanText] for result, which holds no Chinese (Q29).
func CleanResult(s string, most int) string { return ans.clean(s, most) }

func (c class) clean(s string, most int) string {
	var b strings.Builder
	n := 0
	for _, r := range strings.TrimLeft(s, " \t\r\n") {
		if most > 0 && n == most {
			break
		}
		n++
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			r = ' '
		case !c.has(r):
			r = '?'
		}
		b.WriteRune(r)
	}
	return strings.TrimRight(b.String(), " ")
}
