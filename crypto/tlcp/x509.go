package tlcp

import (
	"crypto/x509"

	"github.com/emmansun/gmsm/smx509"
)

// X509 returns what cert says in the standard library's type, for code that
// reads names and identities from certificates of both protocols. Nothing can
// be verified with it: the standard library does not know SM2. It shares memory
// with cert.
func X509(cert *smx509.Certificate) *x509.Certificate {
	if cert == nil {
		return nil
	}
	out := &x509.Certificate{
		Raw: cert.Raw, RawTBSCertificate: cert.RawTBSCertificate, RawSubjectPublicKeyInfo: cert.RawSubjectPublicKeyInfo,
		RawSubject: cert.RawSubject, RawIssuer: cert.RawIssuer,
		Signature: cert.Signature, PublicKey: cert.PublicKey,
		Version: cert.Version, SerialNumber: cert.SerialNumber, Issuer: cert.Issuer, Subject: cert.Subject,
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, KeyUsage: x509.KeyUsage(cert.KeyUsage),
		Extensions: cert.Extensions, UnhandledCriticalExtensions: cert.UnhandledCriticalExtensions, UnknownExtKeyUsage: cert.UnknownExtKeyUsage,
		BasicConstraintsValid: cert.BasicConstraintsValid, IsCA: cert.IsCA, MaxPathLen: cert.MaxPathLen, MaxPathLenZero: cert.MaxPathLenZero,
		SubjectKeyId: cert.SubjectKeyId, AuthorityKeyId: cert.AuthorityKeyId,
		OCSPServer: cert.OCSPServer, IssuingCertificateURL: cert.IssuingCertificateURL, CRLDistributionPoints: cert.CRLDistributionPoints,
		DNSNames: cert.DNSNames, EmailAddresses: cert.EmailAddresses, IPAddresses: cert.IPAddresses, URIs: cert.URIs,
	}
	for _, u := range cert.ExtKeyUsage {
		out.ExtKeyUsage = append(out.ExtKeyUsage, x509.ExtKeyUsage(u))
	}
	return out
}
