package agent

import "github.com/yumen-zt/yumen/internal/reason"

// Explain turns the result of a reply (Tables 13 and 18) into a sentence for
// the person at the keyboard.
func Explain(l reason.Lang, result string) string { return result }
