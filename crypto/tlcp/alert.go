package tlcp

import "strconv"

// Alert is the description of an alert message (GB/T 38636-2020 §6.4.3).
type Alert uint8

// The alerts that are sent or understood here. 200 to 205 belong to the
// site-to-site and identity-based modes, which are not implemented.
const (
	AlertCloseNotify            Alert = 0
	AlertUnexpectedMessage      Alert = 10
	AlertBadRecordMAC           Alert = 20
	AlertDecryptionFailed       Alert = 21
	AlertRecordOverflow         Alert = 22
	AlertDecompressionFailure   Alert = 30
	AlertHandshakeFailure       Alert = 40
	AlertBadCertificate         Alert = 42
	AlertUnsupportedCertificate Alert = 43
	AlertCertificateRevoked     Alert = 44
	AlertCertificateExpired     Alert = 45
	AlertCertificateUnknown     Alert = 46
	AlertIllegalParameter       Alert = 47
	AlertUnknownCA              Alert = 48
	AlertAccessDenied           Alert = 49
	AlertDecodeError            Alert = 50
	AlertDecryptError           Alert = 51
	AlertProtocolVersion        Alert = 70
	AlertInsufficientSecurity   Alert = 71
	AlertInternalError          Alert = 80
	AlertUserCanceled           Alert = 90
	AlertNoRenegotiation        Alert = 100
	AlertUnsupportedExtension   Alert = 110
	AlertUnrecognizedName       Alert = 112
	AlertNoApplicationProtocol  Alert = 120
	AlertUnsupportedSite2Site   Alert = 200
	AlertNoArea                 Alert = 201
	AlertUnsupportedAreaType    Alert = 202
	AlertBadIBCParam            Alert = 203
	AlertUnsupportedIBCParam    Alert = 204
	AlertIdentityNeed           Alert = 205
)

const (
	levelWarning = 1
	levelFatal   = 2
)

var alertText = map[Alert]string{
	AlertCloseNotify:            "close_notify",
	AlertUnexpectedMessage:      "unexpected_message",
	AlertBadRecordMAC:           "bad_record_mac",
	AlertDecryptionFailed:       "decryption_failed",
	AlertRecordOverflow:         "record_overflow",
	AlertDecompressionFailure:   "decompression_failure",
	AlertHandshakeFailure:       "handshake_failure",
	AlertBadCertificate:         "bad_certificate",
	AlertUnsupportedCertificate: "unsupported_certificate",
	AlertCertificateRevoked:     "certificate_revoked",
	AlertCertificateExpired:     "certificate_expired",
	AlertCertificateUnknown:     "certificate_unknown",
	AlertIllegalParameter:       "illegal_parameter",
	AlertUnknownCA:              "unknown_ca",
	AlertAccessDenied:           "access_denied",
	AlertDecodeError:            "decode_error",
	AlertDecryptError:           "decrypt_error",
	AlertProtocolVersion:        "protocol_version",
	AlertInsufficientSecurity:   "insufficient_security",
	AlertInternalError:          "internal_error",
	AlertUserCanceled:           "user_canceled",
	AlertNoRenegotiation:        "no_renegotiation",
	AlertUnsupportedExtension:   "unsupported_extension",
	AlertUnrecognizedName:       "unrecognized_name",
	AlertNoApplicationProtocol:  "no_application_protocol",
	AlertUnsupportedSite2Site:   "unsupported_site2site",
	AlertNoArea:                 "no_area",
	AlertUnsupportedAreaType:    "unsupported_areatype",
	AlertBadIBCParam:            "bad_ibcparam",
	AlertUnsupportedIBCParam:    "unsupported_ibcparam",
	AlertIdentityNeed:           "identity_need",
}

// String returns the standard's name of the alert.
func (a Alert) String() string {
	if s, ok := alertText[a]; ok {
		return s
	}
	return "alert " + strconv.Itoa(int(a))
}

// AlertError says that a connection ended by an alert. Callers tell by it a
// peer that refused us (Remote) from one that we refused, and why.
type AlertError struct {
	Alert  Alert
	Remote bool  // the peer sent it; otherwise we did
	Err    error // what we found wrong; nil when Remote
}

// Error returns the cause and the alert.
func (e *AlertError) Error() string {
	if e.Remote {
		return "tlcp: the peer ended the connection: " + e.Alert.String()
	}
	return "tlcp: " + e.Err.Error() + " (" + e.Alert.String() + " sent)"
}

// Unwrap returns what we found wrong.
func (e *AlertError) Unwrap() error { return e.Err }
