package wire

import (
	"bytes"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/goccy/go-yaml"
)

// The tests read the fields of each table from testdata/csa-gcr-002.yaml, the
// standard as data, so that they and the code are two statements of it.

type specField struct {
	Name      string         `yaml:"n"`
	Type      string         `yaml:"t"`
	Charset   string         `yaml:"charset"`
	ID        int            `yaml:"id"`
	Max       int64          `yaml:"max"`
	Min       int64          `yaml:"min"`
	Required  any            `yaml:"required"`
	Enum      map[int]string `yaml:"enum"`
	Item      string         `yaml:"item"`
	ItemTable int            `yaml:"item_table"`
}

func (f specField) required() bool { return f.Required == true }

func (f specField) onSuccess() bool { return f.Required == "code200" }

type specTable struct {
	Table  int         `yaml:"table"`
	Fields []specField `yaml:"fields"`
}

var spec = sync.OnceValue(func() map[int]specTable {
	raw, err := os.ReadFile("testdata/csa-gcr-002.yaml")
	if err != nil {
		panic(err)
	}
	var doc struct {
		Messages []specTable `yaml:"messages"`
	}
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		panic(err)
	}
	tables := make(map[int]specTable)
	for _, m := range doc.Messages {
		tables[m.Table] = m
	}
	return tables
})

// object is a message as its sender writes it: members in order, each raw.
type object []member

type member struct {
	name string
	raw  string
}

func (o object) JSON() []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(quote(m.name) + ":" + m.raw)
	}
	b.WriteByte('}')
	return b.Bytes()
}

func (o object) with(name, raw string) object {
	out := append(object(nil), o...)
	for i := range out {
		if out[i].name == name {
			out[i].raw = raw
			return out
		}
	}
	return append(out, member{name, raw})
}

func (o object) without(name string) object {
	var out object
	for _, m := range o {
		if m.name != name {
			out = append(out, m)
		}
	}
	return out
}

func quote(s string) string {
	b, err := jsontext.AppendQuote(nil, s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// sample returns a right message of a table, with every field.
func sample(table int) object {
	var o object
	for _, f := range spec()[table].Fields {
		o = append(o, member{f.Name, sampleValue(f)})
	}
	return o
}

func sampleValue(f specField) string {
	switch {
	case f.Name == "dataHash": // SHA-256 of [{"a":1}]
		return quote("b713f6d2a989e907c58516a7c8bb487792c8785ddbf367b80dc774bf33b85a85")
	case f.Name == "data" && f.ItemTable == 0:
		return `[{"a":1}]`
	case f.ItemTable != 0:
		return "[" + string(sample(f.ItemTable).JSON()) + "]"
	case f.Type == "array":
		return `["APP00000001"]`
	case f.Type == "float":
		return "399087000"
	case f.Enum != nil:
		return sampleEnum(f)
	case f.Type == "int":
		return "443"
	}
	return quote(map[string]string{
		"ans": "A-1", "ns": "1.001", "hans": "玉门 gate", "ip": "192.0.2.7", "time": "2026-01-02T03:04:05Z",
	}[f.Charset] + strings.Repeat("x", max(f.ID-3, 0)))
}

func sampleEnum(f specField) string {
	if _, ok := f.Enum[200]; ok {
		return "200"
	}
	return "1"
}

// codec decodes one table's type.
type codec func(raw []byte, p Profile) (Message, error)

func codecOf[M any, P interface {
	*M
	Message
}]() codec {
	return func(raw []byte, p Profile) (Message, error) {
		m, err := Decode[M, P](raw, p)
		if err != nil {
			return nil, err
		}
		return P(m), nil
	}
}

var codecs = map[int]codec{
	1: codecOf[AppIdentity](), 2: codecOf[AppIdentityReply](), 3: codecOf[BusinessRequest](),
	4: codecOf[DeviceIdentity](), 5: codecOf[Reply](), 6: codecOf[GrantList](), 7: codecOf[Grant](),
	8: codecOf[PolicyList](), 9: codecOf[Policy](), 10: codecOf[GatewayStatus](), 11: codecOf[GatewayAlert](),
	12: codecOf[AccessRequest](), 13: codecOf[AccessReply](), 14: codecOf[Renewal](), 15: codecOf[Notice](),
	16: codecOf[Authentication](), 17: codecOf[Factor](), 18: codecOf[AuthenticationReply](),
	19: codecOf[ResourceList](), 20: codecOf[Resource](), 21: codecOf[AgentStatus](), 22: codecOf[AgentAlert](),
}

// TestGCR002_M103_TypesHaveTheTablesFields holds the types against the
// standard: the same fields, in the same order, and nothing else.
func TestGCR002_M103_TypesHaveTheTablesFields(t *testing.T) {
	if len(spec()) != 22 || len(codecs) != 22 {
		t.Fatalf("%d tables in the specification and %d in the code, want 22", len(spec()), len(codecs))
	}
	for n, table := range spec() {
		m, err := codecs[n](sample(n).JSON(), Strict)
		if err != nil {
			t.Errorf("table %d: sample refused: %v", n, err)
			continue
		}
		if m.Table() != n {
			t.Errorf("table %d: Table() = %d", n, m.Table())
		}
		var want, got []string
		for _, f := range table.Fields {
			want = append(want, f.Name)
		}
		typ := reflect.TypeOf(m).Elem()
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			got = append(got, name)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("table %d: fields %q, want %q", n, got, want)
		}
	}
}

// TestEncodeKeepsEveryField decodes each sample, encodes it again and compares
// the members.
func TestEncodeKeepsEveryField(t *testing.T) {
	for n := range spec() {
		raw := bytes.ReplaceAll(sample(n).JSON(), []byte(`Usage":"1.001"`), []byte(`Usage":"001.00%"`))
		m, err := codecs[n](raw, Strict)
		if err != nil {
			t.Errorf("table %d: %v", n, err)
			continue
		}
		got, err := Encode(m)
		if err != nil {
			t.Errorf("table %d: %v", n, err)
			continue
		}
		var a, b any
		if err := json.Unmarshal(got, &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &b); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(a, b) {
			t.Errorf("table %d:\n got %s\nwant %s", n, got, raw)
		}
	}
}
