package wire

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// One vector is one fault (or none) put into one field of a right message.
type vector struct {
	name        string
	raw         string // the field's value; "" leaves the field out
	strict, lax bool   // whether the profile takes the message
}

// what hostile text looks like, for every class of characters
var hostile = map[string]string{
	"full-width":    "\uFF21\uFF11",
	"emoji":         "\U0001F600",
	"nul":           "a\x00b",
	"right-to-left": "a\u202Eb",
	"isolate":       "a\u2066b",
	"zero-width":    "a\u200Db",
	"line feed":     "a\nb",
	"delete":        "a\x7Fb",
	"no-break":      "a\u00A0b",
	"ideographic":   "a\u3000b",
	"accent":        "caf\u00E9",
	"variation":     "a\uFE0F",
	"bom":           "\uFEFFa",
	"space first":   " a",
	"space last":    "a ",
}

// vectors returns the vectors of a field, from the specification alone.
func vectors(f specField) []vector {
	must := f.required()
	v := []vector{
		{"missing", "", !must && !f.onSuccess(), !must && !f.onSuccess()},
		{"null", "null", false, !must && !f.onSuccess()},
		{"boolean", "true", false, false},
		{"object", `{"a":1}`, false, false},
	}
	switch f.Type {
	case "string":
		v = append(v, textVectors(f)...)
	case "int":
		v = append(v, vector{"text", `"1"`, false, false}, vector{"array", "[]", false, false},
			vector{"fraction", "1.5", false, false}, vector{"exponent", "2e2", false, false},
			vector{"whole fraction", "1.0", false, false}, vector{"huge", "99999999999999999999", false, false})
		if f.Enum == nil {
			v = append(v, vector{"lowest", strconv.FormatInt(f.Min, 10), true, true},
				vector{"highest", strconv.FormatInt(f.Max, 10), true, true},
				vector{"below", strconv.FormatInt(f.Min-1, 10), false, false},
				vector{"above", strconv.FormatInt(f.Max+1, 10), false, false})
			break
		}
		for n := -1; n < 500; n++ {
			if _, ok := f.Enum[n]; n != 400 && (ok || n < 10 || n%50 == 0) {
				v = append(v, vector{"value " + strconv.Itoa(n), strconv.Itoa(n), ok, ok})
			}
		}
	case "float":
		low, high := strconv.FormatInt(f.Min, 10), strconv.FormatInt(f.Max, 10)
		v = append(v, vector{"lowest", low, true, true}, vector{"highest", high, true, true},
			vector{"zero", "0", true, true}, vector{"below", strconv.FormatInt(f.Min-1, 10), false, false},
			vector{"above", strconv.FormatInt(f.Max+1, 10), false, false},
			vector{"exponent", "3.99087e8", true, true}, vector{"whole fraction", "399087000.0", true, true},
			vector{"degrees", "39.9087", false, true}, vector{"degrees as text", `"+39.9087"`, false, true},
			vector{"scaled as text", `"-399087000"`, false, true}, vector{"south", `"-39.90871234567"`, false, true},
			vector{"too far", `"+180.0000001"`, false, false}, vector{"scaled fraction", "399087000.5", false, false},
			vector{"words", `"north"`, false, false}, vector{"hexadecimal", `"0x1p4"`, false, false},
			vector{"two signs", `"+-1.0"`, false, false}, vector{"empty", `""`, false, false},
			vector{"not a number", `"NaN"`, false, false}, vector{"beyond float", "1e999", false, false})
	case "array":
		v = append(v, vector{"text", `"a"`, false, false}, vector{"number", "1", false, false},
			vector{"empty", "[]", true, true})
		if f.ItemTable != 0 || f.Item != "" {
			v = append(v, vector{"row of null", "[null]", false, false}, vector{"row of number", "[1]", false, false},
				vector{"row of array", "[[]]", false, false})
		}
		if f.Item == "string" {
			v = append(v, vector{"empty item", `["APP00000001",""]`, false, false},
				vector{"hostile item", `["APP\u0000000001"]`, false, false},
				vector{"long item", `["APP000000012"]`, false, false}, vector{"short item", `["a"]`, false, true})
		}
		if f.ItemTable != 0 {
			v = append(v, vector{"row of nothing", "[{}]", false, false})
		}
	}
	if f.Name == "data" && f.ItemTable == 0 { // dataHash no longer fits
		for i := range v {
			v[i].strict, v[i].lax = false, false
		}
	}
	return v
}

func textVectors(f specField) []vector {
	optional := !f.required() && !f.onSuccess()
	v := []vector{
		{"number", "1", false, false},
		{"array", `["a"]`, false, false},
		{"empty", `""`, false, optional},
		{"bad escape of a surrogate", `"\ud800"`, false, false},
		{"bad utf-8", "\"\xff\"", false, false},
	}
	for name, s := range hostile {
		v = append(v, vector{name, quote(s), false, false})
	}
	switch {
	case f.Charset == "time":
		return append(v, vector{"fraction", `"2026-01-02T03:04:05.123Z"`, false, true},
			vector{"comma", `"2026-01-02T03:04:05,123Z"`, false, false},
			vector{"offset", `"2026-01-02T03:04:05+08:00"`, false, false},
			vector{"blank", `"2026-01-02 03:04:05"`, false, false}, vector{"short hour", `"2026-01-02T3:04:05.0Z"`, false, false},
			vector{"lower case", `"2026-01-02t03:04:05z"`, false, false}, vector{"no day", `"2026-02-30T03:04:05Z"`, false, false},
			vector{"leap second", `"2026-12-31T23:59:60Z"`, false, false}, vector{"leap day", `"2028-02-29T23:59:59Z"`, true, true})
	case f.Charset == "ip":
		return append(v, vector{"ipv6", `"2001:db8::1"`, false, true}, vector{"ipv6 long", `"2001:0DB8:0::1"`, false, true},
			vector{"zone", `"fe80::1%eth0"`, false, false}, vector{"octet", `"192.0.2.256"`, false, false},
			vector{"leading zero", `"192.0.2.07"`, false, false}, vector{"three", `"192.0.2"`, false, false},
			vector{"host", `"gate.example"`, false, false}, vector{"port", `"192.0.2.7:443"`, false, false},
			vector{"prefix", `"192.0.2.0/24"`, false, false}, vector{"all", `"0.0.0.0"`, true, true})
	case f.Name == "dataHash": // only the right one is right; its form is tested with it
		return append(v, vector{"wrong", quote(strings.Repeat("0", 64)), false, false},
			vector{"long", quote(strings.Repeat("0", 65)), false, false}, vector{"word", `"xyz"`, false, false})
	}

	one := map[string]string{"ans": "a", "ns": "1", "hans": "门"}[f.Charset]
	if f.ID != 0 {
		return append(v, vector{"exact", quote(strings.Repeat("a", f.ID)), true, true},
			vector{"one too long", quote(strings.Repeat("a", f.ID+1)), false, false},
			vector{"three too long", quote(strings.Repeat("a", f.ID+3)), false, false},
			vector{"one short", quote(strings.Repeat("a", f.ID-1)), false, true}, vector{"one", `"a"`, false, true},
			vector{"symbols", quote("!\"#$%&'~-_."), true, true}, vector{"escaped", `"\u0041bcdefghijk"`, true, true},
			vector{"chinese", quote("玉门关网关玉门关网关玉"), false, false}, vector{"space inside", `"AGT 0000001"`, false, false})
	}
	v = append(v, vector{"one", quote(one), true, true})
	if f.Max > 0 {
		v = append(v, vector{"longest", quote(strings.Repeat(one, int(f.Max))), true, true},
			vector{"one too long", quote(strings.Repeat(one, int(f.Max)+1)), false, false})
	} else {
		v = append(v, vector{"long", quote(strings.Repeat(one, 2000)), true, true})
	}
	switch f.Charset {
	case "ans":
		v = append(v, vector{"symbols", `"!~@#$%^&*"`, true, true}, vector{"chinese", `"玉门"`, false, false})
	case "ns":
		v = append(v, vector{"letters", `"abc"`, false, true}, vector{"symbols", `"1.2-3%"`, true, true}, vector{"chinese", `"玉门"`, false, false})
	case "hans":
		v = append(v, vector{"mixed", quote("玉门 gate（一），“二”。"), true, true},
			vector{"beyond the basic plane", quote("𠮷野家"), true, true}, vector{"japanese", quote("カタカナ"), false, false})
	}
	return v
}

// testTable drives every vector of every field of a table through both
// profiles; what is refused must name the table and the field.
func testTable(t *testing.T, number int) {
	t.Helper()
	table := spec()[number]
	if len(table.Fields) == 0 {
		t.Fatalf("no table %d in the specification", number)
	}
	count := 0
	for _, f := range table.Fields {
		for _, v := range vectors(f) {
			message := sample(number).with(f.Name, v.raw)
			if v.raw == "" {
				message = sample(number).without(f.Name)
				if f.Name == "data" || f.Name == "code" {
					message = message.without("dataHash")
					v.strict, v.lax = !f.required(), !f.required()
				}
			}
			for _, p := range []struct {
				name string
				p    Profile
				take bool
			}{{"strict", Strict, v.strict}, {"lax", Lax, v.lax}} {
				count++
				_, err := codecs[number](message.JSON(), p.p)
				at := fmt.Sprintf("table %d %s, %s, %s", number, f.Name, v.name, p.name)
				if (err == nil) != p.take {
					t.Errorf("%s: taken %v, want %v (%v)\n%s", at, err == nil, p.take, err, message.JSON())
				}
				if err != nil && !names(err, number, f) {
					t.Errorf("%s: error %q does not name the field", at, err)
				}
				if err != nil && strings.ContainsFunc(err.Error(), func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }) {
					t.Errorf("%s: error %q holds what the peer sent", at, err)
				}
			}
		}
	}
	t.Logf("table %d: %d fields, %d vectors", number, len(table.Fields), count)
}

// names reports whether err is about field f (or about a row in it), or says
// that the text is no JSON at all.
func names(err error, table int, f specField) bool {
	var syntax *SyntaxError
	if errors.As(err, &syntax) {
		return true
	}
	var field *FieldError
	if !errors.As(err, &field) {
		return false
	}
	return field.Table == table && (field.Field == f.Name || f.Name == "data" && field.Field == "dataHash") ||
		field.Table == f.ItemTable
}

func TestGCR002_M29_Table1AppIdentity(t *testing.T)          { testTable(t, 1) }
func TestGCR002_M33_Table2AppIdentityReply(t *testing.T)     { testTable(t, 2) }
func TestGCR002_M36_Table3BusinessRequest(t *testing.T)      { testTable(t, 3) }
func TestGCR002_M50_Table4DeviceIdentity(t *testing.T)       { testTable(t, 4) }
func TestGCR002_M51_Table5Reply(t *testing.T)                { testTable(t, 5) }
func TestGCR002_M53_Table6GrantList(t *testing.T)            { testTable(t, 6) }
func TestGCR002_M54_Table7Grant(t *testing.T)                { testTable(t, 7) }
func TestGCR002_M58_Table8PolicyList(t *testing.T)           { testTable(t, 8) }
func TestGCR002_M59_Table9Policy(t *testing.T)               { testTable(t, 9) }
func TestGCR002_M62_Table10GatewayStatus(t *testing.T)       { testTable(t, 10) }
func TestGCR002_M65_Table11GatewayAlert(t *testing.T)        { testTable(t, 11) }
func TestGCR002_M77_Table12AccessRequest(t *testing.T)       { testTable(t, 12) }
func TestGCR002_M78_Table13AccessReply(t *testing.T)         { testTable(t, 13) }
func TestGCR002_M80_Table14Renewal(t *testing.T)             { testTable(t, 14) }
func TestGCR002_M83_Table15Notice(t *testing.T)              { testTable(t, 15) }
func TestGCR002_M93_Table16Authentication(t *testing.T)      { testTable(t, 16) }
func TestGCR002_M95_Table17Factor(t *testing.T)              { testTable(t, 17) }
func TestGCR002_M96_Table18AuthenticationReply(t *testing.T) { testTable(t, 18) }
func TestGCR002_M97_Table19ResourceList(t *testing.T)        { testTable(t, 19) }
func TestGCR002_M98_Table20Resource(t *testing.T)            { testTable(t, 20) }
func TestGCR002_M99_Table21AgentStatus(t *testing.T)         { testTable(t, 21) }
func TestGCR002_M100_Table22AgentAlert(t *testing.T)         { testTable(t, 22) }
