package diagnose

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
)

// CertInfo is a certificate for people. Its texts are safe to print.
type CertInfo struct {
	Role      string    `json:"role"` // sign, enc, tls, authority or other
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Key       string    `json:"key"`       // SM2, P-256, RSA-2048 ...
	Signature string    `json:"signature"` // algorithm of the issuer's signature
	Usage     []string  `json:"usage,omitempty"`
	Extended  []string  `json:"extended_usage,omitempty"`
	Names     []string  `json:"names,omitempty"`
	CA        bool      `json:"ca,omitempty"`
	SHA256    string    `json:"sha256"`
}

func describe(c *smx509.Certificate, role string) CertInfo {
	sum := sha256.Sum256(c.Raw)
	i := CertInfo{
		Role: role, Subject: subject(c), Issuer: clean(c.Issuer.String()), NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		Key: keyName(c.PublicKey), Signature: signatureName(c), Usage: usages(c.KeyUsage), Extended: extended(c),
		Names: names(c), CA: c.IsCA, SHA256: hex.EncodeToString(sum[:]),
	}
	if c.SerialNumber != nil {
		i.Serial = clean(c.SerialNumber.Text(16))
	}
	return i
}

func subject(c *smx509.Certificate) string { return clean(c.Subject.String()) }

func keyName(pub any) string {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if sm2.IsSM2PublicKey(k) {
			return "SM2"
		}
		return k.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", k.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return "unknown"
}

func signatureName(c *smx509.Certificate) string {
	if c.SignatureAlgorithm == smx509.SM2WithSM3 {
		return "SM2-SM3"
	}
	return c.SignatureAlgorithm.String()
}

var usageNames = []string{
	"digitalSignature", "contentCommitment", "keyEncipherment", "dataEncipherment", "keyAgreement",
	"keyCertSign", "cRLSign", "encipherOnly", "decipherOnly",
}

func usages(u smx509.KeyUsage) []string {
	var out []string
	for i, name := range usageNames {
		if u&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

func extended(c *smx509.Certificate) []string {
	var out []string
	for _, u := range c.ExtKeyUsage {
		switch u {
		case smx509.ExtKeyUsageAny:
			out = append(out, "any")
		case smx509.ExtKeyUsageServerAuth:
			out = append(out, "serverAuth")
		case smx509.ExtKeyUsageClientAuth:
			out = append(out, "clientAuth")
		default:
			out = append(out, fmt.Sprintf("other-%d", int(u)))
		}
	}
	for _, oid := range c.UnknownExtKeyUsage {
		out = append(out, clean(oid.String()))
	}
	return out
}

// mostNames is how many names of a certificate are shown.
const mostNames = 50

func names(c *smx509.Certificate) []string {
	var out []string
	for _, n := range c.DNSNames {
		out = append(out, clean(n))
	}
	for _, ip := range c.IPAddresses {
		out = append(out, ip.String())
	}
	for _, u := range c.URIs {
		out = append(out, clean(u.String()))
	}
	if len(out) > mostNames {
		out = append(out[:mostNames], "...")
	}
	return out
}

// list joins texts for a sentence.
func list(s []string) any {
	if len(s) == 0 {
		return both{"none", "无"}
	}
	return strings.Join(s, ", ")
}

var roleTitle = map[string]string{
	"sign": "signing certificate 签名证书", "enc": "encryption certificate 加密证书", "tls": "TLS certificate TLS 证书",
	"authority": "authority 证书颁发机构", "other": "other certificate 其他证书",
}

func writeCerts(w io.Writer, certs []CertInfo) {
	for _, c := range certs {
		fmt.Fprintf(w, "%s\n  subject   %s\n  issuer    %s\n  serial    %s\n  valid     %s to %s\n  key       %s, signed with %s\n",
			roleTitle[c.Role], c.Subject, c.Issuer, c.Serial, c.NotBefore.UTC().Format(time.DateTime), c.NotAfter.UTC().Format(time.DateTime), c.Key, c.Signature)
		if len(c.Usage)+len(c.Extended) > 0 {
			fmt.Fprintf(w, "  usage     %s\n", strings.Join(append(append([]string{}, c.Usage...), c.Extended...), ", "))
		}
		if len(c.Names) > 0 {
			fmt.Fprintf(w, "  names     %s\n", strings.Join(c.Names, ", "))
		}
	}
}
