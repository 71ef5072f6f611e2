package wire

// The standard gives keyType and authMethod no list of values. Both registries
// are open: any code of letters, digits and symbols up to 10 characters is
// taken, and these are the ones that we know (Q14, Q15).

// The key types of Tables 3, 6 and 19: how the body of the message is keyed.
const (
	KeyNone   = "NONE"
	KeySM2    = "SM2"
	KeySM4    = "SM4"
	KeySM2SM4 = "SM2-SM4" // SM4 under a fresh key, wrapped by SM2: what our envelope does
	KeyRSA    = "RSA"
	KeyAES    = "AES"
)

// The authentication methods of Table 1.
const (
	AuthOIDC = "OIDC"
	AuthSAML = "SAML"
	AuthMTLS = "MTLS" // the certificate of the channel: what we send
	AuthHMAC = "HMAC"
	AuthKey  = "KEY" // the authKey of Table 2
)

// code is the rule of registry values.
var code = upTo(10, word)
