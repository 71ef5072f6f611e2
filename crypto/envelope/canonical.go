package envelope

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// signedPrefix separates signatures of envelopes from all other signatures of
// the same key, and this form of envelope from later ones.
const signedPrefix = "yumen-envelope-v1\n"

// SignedBytes returns the bytes that the signature of an envelope covers, for
// its header and its body as sent. Both must be JSON that [Receiver.Open] would
// take: without duplicate names or integers of 2^53 and above.
func SignedBytes(header, body []byte) ([]byte, error) {
	if err := errors.Join(strict(header), strict(body)); err != nil {
		return nil, err
	}
	h, err := canonical(header)
	if err != nil {
		return nil, err
	}
	b, err := canonical(body)
	if err != nil {
		return nil, err
	}
	return signedBytes(h, b), nil
}

// signedBytes is SignedBytes for parts that are canonical already: RFC 8785
// sorts "body" before "header".
func signedBytes(header, body []byte) []byte {
	out := make([]byte, 0, len(signedPrefix)+len(header)+len(body)+20)
	out = append(out, signedPrefix...)
	out = append(out, `{"body":`...)
	out = append(out, body...)
	out = append(out, `,"header":`...)
	out = append(out, header...)
	return append(out, '}')
}

// canonical returns the RFC 8785 form of v, which stays as it is.
func canonical(v []byte) (jsontext.Value, error) {
	c := jsontext.Value(bytes.Clone(v))
	if err := c.Canonicalize(); err != nil {
		return nil, fmt.Errorf("make canonical form: %w", err)
	}
	return c, nil
}

// strict refuses JSON that two readers could take for different things or that
// is made to exhaust one: other than a single value, duplicate names, invalid
// UTF-8, more than MaxDepth levels, integers of 2^53 and above, numbers beyond
// the range of a float64.
func strict(v []byte) error {
	dec := jsontext.NewDecoder(bytes.NewBuffer(v))
	for {
		tok, err := dec.ReadToken()
		if err == io.EOF {
			return io.ErrUnexpectedEOF // no value at all
		}
		if err != nil {
			return err
		}
		switch tok.Kind() {
		case '{', '[':
			if dec.StackDepth() > MaxDepth {
				return fmt.Errorf("more than %d levels at byte %d", MaxDepth, dec.InputOffset())
			}
		case '0':
			if err := strictNumber(tok.String()); err != nil {
				return fmt.Errorf("%w at byte %d", err, dec.InputOffset())
			}
		}
		if dec.StackDepth() == 0 {
			break
		}
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return errors.New("data after the value")
	}
	return nil
}

func strictNumber(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return errors.New("number out of range")
	}
	if !strings.ContainsAny(s, ".eE") && math.Abs(f) >= maxInteger {
		return errors.New("integer of 2^53 or above")
	}
	return nil
}
