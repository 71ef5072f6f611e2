package envelope

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// timeLayout is how the header's time is written.
const timeLayout = "2006-01-02T15:04:05.000Z"

// check returns an error unless every field of h has its form. What the values
// are worth is for others to say.
func (h *Header) check() error {
	switch {
	case h.Version != Version:
		return fmt.Errorf("header version: %q is not %q", clip(h.Version), Version)
	case !validType(h.MsgType):
		return fmt.Errorf("header msgType: %q is neither T1 to T22 nor X. and a name", clip(h.MsgType))
	case !printable(h.MsgID):
		return fmt.Errorf("header msgId: %q is not 1 to 64 printable ASCII characters", clip(h.MsgID))
	case !printable(h.Sender):
		return fmt.Errorf("header sender: %q is not 1 to 64 printable ASCII characters", clip(h.Sender))
	case !printable(h.Receiver):
		return fmt.Errorf("header receiver: %q is not 1 to 64 printable ASCII characters", clip(h.Receiver))
	case h.Seq != "" && !validSeq(h.Seq):
		return fmt.Errorf("header seq: %q is not a decimal number below 2^64", clip(h.Seq))
	case !validKeyID(h.KeyID):
		return fmt.Errorf("header keyId: %q is not 32 lower-case hexadecimal digits", clip(h.KeyID))
	case len(h.Ext) > maxExt:
		return fmt.Errorf("header ext: %d fields, at most %d", len(h.Ext), maxExt)
	}
	for name := range h.Ext {
		if !printable(name) {
			return fmt.Errorf("header ext: name %q is not 1 to 64 printable ASCII characters", clip(name))
		}
	}
	_, err := h.time()
	return err
}

// time returns the header's time of sending.
func (h *Header) time() (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, h.Timestamp)
	if err != nil || !strings.HasSuffix(h.Timestamp, "Z") || len(h.Timestamp) > 32 {
		return time.Time{}, fmt.Errorf("header timestamp: %q is not an RFC 3339 time in UTC", clip(h.Timestamp))
	}
	return t, nil
}

// printable reports whether s is 1 to 64 characters from ! to ~, without space.
func printable(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func validType(s string) bool {
	if name, ok := strings.CutPrefix(s, "X."); ok {
		for i := range len(name) {
			if name[i] < 'a' || name[i] > 'z' {
				return false
			}
		}
		return len(name) > 0 && len(name) <= 16
	}
	num, ok := strings.CutPrefix(s, "T")
	n, err := strconv.Atoi(num)
	return ok && err == nil && n >= 1 && n <= 22 && num == strconv.Itoa(n)
}

func validSeq(s string) bool {
	n, err := strconv.ParseUint(s, 10, 64)
	return err == nil && s == strconv.FormatUint(n, 10)
}

func validKeyID(s string) bool {
	if len(s) != 32 {
		return false
	}
	for i := range len(s) {
		if !('0' <= s[i] && s[i] <= '9' || 'a' <= s[i] && s[i] <= 'f') {
			return false
		}
	}
	return true
}

// clip keeps a stranger's text short in errors.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}
