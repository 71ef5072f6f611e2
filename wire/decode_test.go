package wire

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

const accessRequest = `{"agentId":"AGT00000001","userId":"USR00000001","deviceId":"DEV00000001","authToken":"0123456789A",` +
	`"appId":"APP00000001","appName":"工单","ip":"192.0.2.1","port":443}`

func TestFieldErrorText(t *testing.T) {
	tests := []struct{ old, new, want string }{
		{`"AGT00000001"`, `"AGT00000000001"`, "Table 12 agentId: 14 characters, at most 11"},
		{`"agentId":"AGT00000001",`, ``, "Table 12 agentId: missing"},
		{`"AGT00000001"`, `""`, "Table 12 agentId: empty"},
		{`"AGT00000001"`, `5`, "Table 12 agentId: a number, must be a string"},
		{`"AGT00000001"`, `null`, "Table 12 agentId: null, must be a string"},
		{`"AGT00000001"`, `"AGT\u0000"`, "Table 12 agentId: character 4 is U+0000, not a letter, digit or symbol"},
		{`443`, `65536`, "Table 12 port: 65536, must be 0 to 65535"},
		{`443`, `"443"`, "Table 12 port: a string, must be a whole number"},
		{`192.0.2.1`, `192.0.2`, "Table 12 ip: not an IPv4 or IPv6 address"},
		{`"port"`, `"Port"`, "Table 12 port: missing"},
		{`"port":443`, `"port":443,"port":443`, "Table 12 port: given twice"},
		{`"agentId":"AGT00000001","userId":"USR00000001"`, `"agentId":"AGT00000001"`, "Table 12 userId: missing"},
		{`443}`, `443} x`, "Table 12: malformed JSON"},
		{`443}`, `443}{}`, "Table 12: malformed JSON"},
		{`443}`, `443`, "Table 12: malformed JSON"},
		{accessRequest, `[]`, "Table 12: an array, must be an object"},
		{accessRequest, `null`, "Table 12: null, must be an object"},
		{accessRequest, ``, "Table 12: malformed JSON"},
		{accessRequest, "\uFEFF" + accessRequest, "Table 12: malformed JSON"},
	}
	for _, tt := range tests {
		_, err := Decode[AccessRequest]([]byte(strings.Replace(accessRequest, tt.old, tt.new, 1)), Lax)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s instead of %s: got %v, want %s", tt.new, tt.old, err, tt.want)
		}
	}
}

func TestDecodeReportsEveryFault(t *testing.T) {
	_, err := Decode[AccessReply]([]byte(`{"code":500,"result":"","x":1}`), Strict)
	want := "Table 13 \"x\": unknown field\nTable 13 code: 500, must be 200 or 400\nTable 13 result: empty"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	var b strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&b, `"x%d":1,`, i)
	}
	_, err = Decode[AccessReply]([]byte(`{`+b.String()+`"code":200,"result":"OK"}`), Strict)
	if err == nil || !strings.HasSuffix(err.Error(), "Table 13: 984 more faults") || len(err.Error()) > 2000 {
		t.Errorf("a thousand faults: got %v", err)
	}
}

// TestGCR002_M53_UnknownFields: lax ignores them, strict names them; names are
// taken in exact case by both; a name that stands twice is refused by both.
func TestGCR002_M53_UnknownFields(t *testing.T) {
	const base = `{"code":200,"result":"OK"`
	tests := []struct {
		name, rest  string
		strict, lax bool
	}{
		{"none", ``, true, true},
		{"unknown", `,"extra":{"a":[1,{"b":2}]}`, false, true},
		{"other case", `,"Code":400`, false, true},
		{"known twice", `,"code":200`, false, false},
		{"known twice, escaped", `,"\u0063ode":200`, false, false},
		{"unknown twice", `,"extra":1,"extra":1`, false, false},
		{"twice inside", `,"extra":{"a":1,"a":2}`, false, false},
		{"twice deep inside", `,"extra":[{"b":{"a":1,"a":2}}]`, false, false},
		{"hostile name", ",\"\\u0000\\u202E" + strings.Repeat("玉", 90) + `":1`, false, true},
		{"comma", `,`, false, false},
		{"comment", `/**/`, false, false},
		{"not a number", `,"extra":NaN`, false, false},
		{"single quotes", `,'extra':1`, false, false},
	}
	for _, tt := range tests {
		raw := []byte(base + tt.rest + "}")
		for _, p := range []struct {
			p    Profile
			take bool
		}{{Strict, tt.strict}, {Lax, tt.lax}} {
			m, err := Decode[Reply](raw, p.p)
			if (err == nil) != p.take {
				t.Errorf("%s, strict %v: taken %v, want %v (%v)", tt.name, p.p.Strict, err == nil, p.take, err)
			}
			if err == nil && *m != (Reply{200, "OK"}) {
				t.Errorf("%s: got %+v", tt.name, *m)
			}
			if err != nil && (m != nil || strings.ContainsAny(err.Error(), "\x00\u202E玉") || len(err.Error()) > 400) {
				t.Errorf("%s: message %v, error %q", tt.name, m, err)
			}
		}
	}
}

func TestGCR002_M53_AbsentByNullStillCountsAsGiven(t *testing.T) {
	list := string(grantList())
	for _, members := range []string{`"remark":null,"remark":"x"`, `"remark":"x","remark":null`, `"remark":null,"remark":null`} {
		if l, err := Decode[GrantList]([]byte(strings.Replace(list, `"data"`, members+`,"data"`, 1)), Lax); err == nil || err.Error() != "Table 6 remark: given twice" {
			t.Errorf("%s: %+v, %v", members, l, err)
		}
	}
}

func TestDecodeDepth(t *testing.T) {
	at := func(levels int) []byte { // the message itself is one level
		return []byte(`{"code":200,"result":"[[{","x":` + strings.Repeat("[", levels-1) + strings.Repeat("]", levels-1) + `}`)
	}
	if _, err := Decode[Reply](at(MaxDepth), Lax); err != nil {
		t.Errorf("%d levels: %v", MaxDepth, err)
	}
	if _, err := Decode[Reply](at(MaxDepth+1), Lax); !errors.Is(err, ErrTooDeep) {
		t.Errorf("%d levels: %v, want ErrTooDeep", MaxDepth+1, err)
	}
	if _, err := Decode[Reply]([]byte(strings.Repeat(`{"a":`, 200_000)), Lax); !errors.Is(err, ErrTooDeep) {
		t.Errorf("200,000 levels: %v, want ErrTooDeep", err)
	}
}

func TestDecodeSize(t *testing.T) {
	message := func(size int) []byte {
		const head, tail = `{"code":200,"result":"`, `"}`
		return []byte(head + strings.Repeat("a", size-len(head)-len(tail)) + tail)
	}
	if _, err := Decode[Reply](message(MaxMessage), Strict); err != nil {
		t.Errorf("1 MiB: %v", err)
	}
	if _, err := Decode[Reply](message(MaxMessage+1), Lax); !errors.Is(err, ErrTooLarge) {
		t.Errorf("1 MiB and a byte: %v, want ErrTooLarge", err)
	}
	if _, err := Decode[Reply](message(MaxMessage+1), Profile{MaxBytes: 2 * MaxMessage}); err != nil {
		t.Errorf("1 MiB and a byte under 2 MiB: %v", err)
	}
	if _, err := Encode(&Reply{Success, strings.Repeat("a", MaxMessage)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Encode beyond 1 MiB: %v, want ErrTooLarge", err)
	}
}

func TestGCR002_M43_OnlyWhiteSpaceMayFollow(t *testing.T) {
	for tail, take := range map[string]bool{"": true, " \r\n\t": true, "\x00": false, ",": false, "{}": false, "null": false} {
		_, err := Decode[Reply]([]byte(`{"code":200,"result":"OK"}`+tail), Strict)
		if (err == nil) != take {
			t.Errorf("tail %q: taken %v, want %v (%v)", tail, err == nil, take, err)
		}
	}
}

const goodGrant = `{"userId":"USR00000001","deviceId":"DEV00000001","authenticationToken":"0123456789A","expirationDate":"2026-01-02T03:04:05Z","appIdList":["APP00000001"]}`

func grantList(rows ...string) []byte {
	return []byte(`{"gatewayId":"GW000000001","deviceId":"DEV00000001","keyType":"SM2-SM4","timestamp":"2026-01-02T03:04:05Z","data":[` +
		strings.Join(rows, ",") + `]}`)
}

// TestGCR002_M54_BadRowGrantsNothingAndFailsNothing: of a list with bad rows
// the good ones stand, each bad one is named, and where each good one stood is
// known.
func TestGCR002_M54_BadRowGrantsNothingAndFailsNothing(t *testing.T) {
	row := func(old, new string) string { return strings.Replace(goodGrant, old, new, 1) }
	raw := grantList(
		row(`USR00000001`, `USR00000000`),           // 0 good
		row(`"2026-01-02T03:04:05Z"`, `"tomorrow"`), // 1
		`17`,                              // 2
		row(`"USR00000001"`, `5`),         // 3
		row(`USR00000001`, `USR00000004`), // 4 good
		row(`"userId"`, `"userId":"USR00000009","userId"`),        // 5
		row(`"APP00000001"`, `"APP00000001","APP\u202E0000001"`),  // 6
		row(`"appIdList"`, `"x":{"a":1,"a":2},"appIdList"`),       // 7
		row(`USR00000001`, `USR00000008`),                         // 8 good
		row(`"authenticationToken":"0123456789A"`, `"token":"0"`), // 9
	)
	list, bad, err := DecodeGrantList(raw, Lax)
	if err != nil {
		t.Fatal(err)
	}
	var users, faults []string
	for i, g := range list.Data {
		users = append(users, fmt.Sprintf("%d:%s", OriginalRow(bad, i), g.UserID))
	}
	for i := range bad {
		faults = append(faults, bad[i].Error()+" ["+bad[i].ID+"]")
	}
	if got, want := strings.Join(users, " "), "0:USR00000000 4:USR00000004 8:USR00000008"; got != want {
		t.Errorf("good rows %s, want %s", got, want)
	}
	want := `row 1: Table 7 expirationDate: not a time as YYYY-MM-DDTHH:MM:SSZ [USR00000001]
row 2: Table 7 row: a number, must be an object []
row 3: Table 7 userId: a number, must be a string []
row 5: Table 7 userId: given twice [USR00000009]
row 6: Table 7 appIdList: element 1: character 4 is U+202E, not a letter, digit or symbol [USR00000001]
row 7: Table 7 "x": holds a name twice [USR00000001]
row 9: Table 7 authenticationToken: missing [USR00000001]`
	if got := strings.Join(faults, "\n"); got != want {
		t.Errorf("bad rows:\n%s\nwant:\n%s", got, want)
	}

	if _, err := Decode[GrantList](raw, Lax); err == nil || strings.Count(err.Error(), "row ") != 7 {
		t.Errorf("Decode of the same list: %v, want the seven rows", err)
	}
	for name, raw := range map[string][]byte{
		"rows that are no array": []byte(strings.Replace(string(grantList()), "[]", "{}", 1)),
		"a bad head":             []byte(strings.Replace(string(grantList(goodGrant)), "GW000000001", "GW\u202E", 1)),
		"a text that breaks off": grantList(goodGrant)[:200],
		"broken JSON in a row":   grantList(goodGrant, `{"userId":}`),
		"rows given twice":       []byte(strings.Replace(string(grantList(goodGrant)), `"data"`, `"data":[],"data"`, 1)),
	} {
		if l, bad, err := DecodeGrantList(raw, Lax); err == nil || l != nil || bad != nil {
			t.Errorf("%s: list %v, rows %v, error %v, want an error alone", name, l, bad, err)
		}
	}
}

// TestManyBadRowsStayCheap: beyond a thousand the rows are still counted and
// named, but not each with its own faults.
func TestManyBadRowsStayCheap(t *testing.T) {
	const n = 3 * maxRowFaults
	rows := make([]string, n)
	for i := range rows {
		rows[i] = fmt.Sprintf(`{"userId":"U%d"}`, i)
	}
	list, bad, err := DecodeGrantList(grantList(append(rows, goodGrant)...), Lax)
	if err != nil || len(list.Data) != 1 || len(bad) != n {
		t.Fatalf("%d rows, %d bad, %v", len(list.Data), len(bad), err)
	}
	if bad[maxRowFaults-1].Err == errRowFaults || bad[n-1].Err != errRowFaults || bad[n-1].ID != fmt.Sprint("U", n-1) {
		t.Errorf("bad rows %v and %v", &bad[maxRowFaults-1], &bad[n-1])
	}
	if got := OriginalRow(bad, 0); got != n {
		t.Errorf("the good row stood at %d, want %d", got, n)
	}
}

func TestGCR002_M56_NoAppsInEveryForm(t *testing.T) {
	for _, form := range []string{`,"appIdList":["APP00000001"]`, `,"appIdList":[]`, ``} {
		g, err := Decode[Grant]([]byte(strings.Replace(goodGrant, `,"appIdList":["APP00000001"]`, form, 1)), Strict)
		if want := strings.Count(form, "APP"); err != nil || len(g.AppIDList) != want {
			t.Errorf("%q: %+v, %v, want %d applications", form, g, err, want)
		}
	}
}

func TestGCR002_M58_BadPolicyRowIsNamed(t *testing.T) {
	raw := []byte(`{"gatewayId":"GW000000001","deviceId":"DEV00000001","timestamp":"2026-01-02T03:04:05Z","policyList":[
		{"policyId":"POL00000001","policyName":"办公时间","policyType":"time","policyData":"1-5 0800-2000 +08"},
		{"policyId":"POL00000002","policyName":"n","policyType":"time","policyData":"12345678901234567890123456789012345678901"},
		{"policyId":"POL00000003\n","policyName":"n","policyType":"time","policyData":"x"}]}`)
	list, bad, err := DecodePolicyList(raw, Strict)
	if err != nil || len(list.PolicyList) != 1 || list.PolicyList[0].PolicyData != "1-5 0800-2000 +08" {
		t.Fatalf("list %+v, %v", list, err)
	}
	if len(bad) != 2 || bad[0].Row != 1 || bad[0].ID != "POL00000002" || bad[1].Row != 2 || bad[1].ID != "" {
		t.Errorf("bad rows %+v", bad)
	}
	if want := "row 1: Table 9 policyData: 41 characters, at most 40"; bad[0].Error() != want {
		t.Errorf("got %s, want %s", bad[0].Error(), want)
	}
}

func TestDecodeRows(t *testing.T) {
	rows, bad, err := DecodeRows[Grant]([]byte(`[`+goodGrant+`,{},`+goodGrant+`]`), Lax)
	if err != nil || len(rows) != 2 || len(bad) != 1 || bad[0].Row != 1 {
		t.Errorf("rows %v, bad %v, error %v", rows, bad, err)
	}
	for _, raw := range []string{``, `{}`, `[`, `[]]`, `[{]`, `null`} {
		if rows, _, err := DecodeRows[Grant]([]byte(raw), Lax); err == nil || rows != nil {
			t.Errorf("%q: rows %v, error %v", raw, rows, err)
		}
	}
}

func TestGCR002_M78_ValidateAndEncodeOfOwnMessages(t *testing.T) {
	if b, err := Encode(AccessReply{Failure, "302 NO_GRANT: access is not granted"}); err != nil ||
		string(b) != `{"code":400,"result":"302 NO_GRANT: access is not granted"}` {
		t.Errorf("%s, %v", b, err)
	}
	for _, m := range []Message{AccessReply{}, &AccessReply{Code: Success}, &AccessReply{Failure, "拒绝"}, &AccessReply{404, "NOT FOUND"}} {
		if b, err := Encode(m); err == nil {
			t.Errorf("%+v went out as %s", m, b)
		}
	}
}

// TestGCR002_M33_M96_ConditionalFields: what a success must carry and a
// failure must not.
func TestGCR002_M33_M96_ConditionalFields(t *testing.T) {
	tests := []struct {
		raw         string
		strict, lax bool
	}{
		{`{"code":200,"result":"OK","authToken":"0123456789A","expirationDate":"2026-01-02T03:04:05Z"}`, true, true},
		{`{"code":200,"result":"OK","authToken":"0123456789A"}`, false, false},
		{`{"code":200,"result":"OK"}`, false, false},
		{`{"code":200,"result":"OK","authToken":null,"expirationDate":"2026-01-02T03:04:05Z"}`, false, false},
		{`{"code":400,"result":"202 LOGIN_FAILED"}`, true, true},
		{`{"code":400,"result":"202 LOGIN_FAILED","authToken":""}`, false, true},
		{`{"code":400,"result":"202 LOGIN_FAILED","authToken":"0123456789A"}`, false, true},
		{`{"code":400,"result":""}`, false, false},
		{`{"code":400}`, false, false},
		{`{"authToken":"0123456789A","result":"OK","expirationDate":"2026-01-02T03:04:05Z","code":200}`, true, true},
	}
	for _, tt := range tests {
		for p, take := range map[Profile]bool{Strict: tt.strict, Lax: tt.lax} {
			if _, err := Decode[AuthenticationReply]([]byte(tt.raw), p); (err == nil) != take {
				t.Errorf("%s, strict %v: taken %v, want %v (%v)", tt.raw, p.Strict, err == nil, take, err)
			}
		}
	}
	_, err := Decode[AppIdentityReply]([]byte(`{"code":200,"result":"OK"}`), Lax)
	for _, f := range []string{"authKey", "expiry", "signature", "signatureType"} {
		if err == nil || !strings.Contains(err.Error(), "Table 2 "+f+": missing, required when code is 200") {
			t.Errorf("Table 2 without %s: %v", f, err)
		}
	}
}

func TestGCR002_M94_AuthenticationMethods(t *testing.T) {
	base := string(sample(16).JSON())
	for method, take := range map[string]bool{"1": true, "2": true, "0": false, "3": false, `"1"`: false} {
		m, err := Decode[Authentication]([]byte(strings.Replace(base, `"userAuthenticationMethod":1`, `"userAuthenticationMethod":`+method, 1)), Lax)
		if (err == nil) != take {
			t.Errorf("method %s: %+v, %v", method, m, err)
		}
	}
	// Q25: without factors it is the identity report.
	m, err := Decode[Authentication](sample(16).without("userAuthenticationList").JSON(), Strict)
	if err != nil || m.UserAuthenticationList != nil {
		t.Errorf("identity report: %+v, %v", m, err)
	}
	if b, err := Encode(m); err != nil || strings.Contains(string(b), "userAuthenticationList") {
		t.Errorf("identity report: sent %s, %v", b, err)
	}
}
