package ctlclient

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/yumen-zt/yumen/wire"
)

// EnrolConfig is what [Enrol] needs.
type EnrolConfig struct {
	Code       string   // the one-time code; required
	Dir        string   // key folder to make; must not hold keys yet; required
	Passphrase []byte   // encrypts the keys; required
	DeviceName string   // default: the host name
	DeviceType string   // default: the kind of the code
	SystemType string   // default: the system and architecture of the build
	Hosts      []string // names and addresses for the certificate requests
	Dial       func(ctx context.Context, network, addr string) (net.Conn, error)
	Now        func() time.Time
}

// Enrolled is what an enrolment gave.
type Enrolled struct {
	Kind      string // wire.EnrolAgent, EnrolGateway or EnrolApp
	ID        string
	DeviceID  string
	ControlID string
	URL       string // base of the control center
}

// Enrol makes the three keys in cfg.Dir, has them certified with the one-time
// code and writes the certificates and the trust files. The keys never leave.
func Enrol(ctx context.Context, cfg EnrolConfig) (*Enrolled, error) {
	if _, err := wire.ParseEnrolCode(cfg.Code); err != nil {
		return nil, err
	}
	return nil, errors.New("enrol: not built yet")
}
