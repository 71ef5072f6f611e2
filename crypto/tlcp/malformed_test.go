package tlcp

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
)

// setups returns each kind of handshake, as functions that make fresh
// configurations.
func setups(t *testing.T) map[string]func() (server, client *Config) {
	site := newSite(t)
	out := make(map[string]func() (*Config, *Config))
	for _, suite := range allSuites {
		for _, mutual := range []bool{false, true} {
			if isECDHE(suite) && !mutual {
				continue
			}
			out[fmt.Sprintf("%s/mutual=%v", CipherSuiteName(suite), mutual)] = func() (*Config, *Config) {
				server, client := site.configs(suite, mutual)
				server.NextProtos, client.NextProtos = []string{"h2"}, []string{"h2"}
				return server, client
			}
		}
	}
	return out
}

// seen records what goes over the wire when nobody interferes.
func seen(t *testing.T, server, client *Config) (records []wireRecord) {
	t.Helper()
	ch := make(chan wireRecord, 64)
	res := relayed(t, server, client, func(r wireRecord) [][]byte {
		ch <- wireRecord{r.fromClient, r.index, slices.Clone(r.raw)}
		return unchanged(r)
	})
	close(ch)
	if res.serverErr != nil || res.clientErr != nil {
		t.Fatalf("nobody interfered: server %v, client %v", res.serverErr, res.clientErr)
	}
	for r := range ch {
		records = append(records, r)
	}
	return records
}

// untilFinished returns the records of one direction to Finished: what follows
// ChangeCipherSpec once.
func untilFinished(records []wireRecord, fromClient bool) (out []wireRecord) {
	for _, r := range records {
		if r.fromClient != fromClient {
			continue
		}
		out = append(out, r)
		if n := len(out); n > 1 && out[n-2].kind() == recordChangeCipherSpec {
			break
		}
	}
	return out
}

// TestEveryRecordOfAHandshakeMatters drops, doubles, swaps, truncates and
// spoils each record of each direction, Finished included. The handshake must
// fail on both sides, and one of them must have said why by an alert, unless the
// receiver had reason to wait for more.
func TestEveryRecordOfAHandshakeMatters(t *testing.T) {
	for name, setup := range setups(t) {
		t.Run(name, func(t *testing.T) {
			records := seen(t, first(setup()), second(setup()))
			for _, fromClient := range []bool{true, false} {
				flight := untilFinished(records, fromClient)
				if len(flight) < 4 {
					t.Fatalf("a direction of %d records", len(flight))
				}
				for i, r := range flight {
					spoil(t, setup, fromClient, i, len(flight), r)
				}
			}
		})
	}
}

func spoil(t *testing.T, setup func() (*Config, *Config), fromClient bool, i, n int, r wireRecord) {
	at := func(f func(wireRecord) [][]byte) rewrite {
		return func(r wireRecord) [][]byte {
			if r.fromClient == fromClient && r.index == i {
				return f(r)
			}
			return unchanged(r)
		}
	}
	header := func(kind byte, length int) []byte {
		return []byte{kind, byte(length >> 16), byte(length >> 8), byte(length)}
	}
	encrypted := i == n-1
	// What is cut off a certificate request is taken from server hello done.
	endOfFlight := fromClient && i == 0 || encrypted || !fromClient && slices.Contains([]byte{typeCertificateRequest, typeServerHelloDone}, r.body()[0])
	plainMessage := r.kind() == recordHandshake && !encrypted
	ways := map[string]rewrite{
		"dropped": at(func(wireRecord) [][]byte { return nil }),
		"doubled": at(func(r wireRecord) [][]byte { return [][]byte{r.raw, r.raw} }),
		"last byte cut from the record": at(func(r wireRecord) [][]byte {
			b := r.body()
			// The type of the next message must not happen to be what is cut.
			if last := &b[len(b)-1]; *last > typeNewSessionTicket && *last <= typeFinished {
				*last = 0xff
				return [][]byte{r.raw}
			}
			return [][]byte{record(r.kind(), b[:len(b)-1])}
		}),
		"last bit flipped": at(func(r wireRecord) [][]byte {
			r.raw[len(r.raw)-1] ^= 1
			return [][]byte{r.raw}
		}),
		"an empty record in front": at(func(r wireRecord) [][]byte { return [][]byte{record(r.kind(), nil), r.raw} }),
		"another protocol version": at(func(r wireRecord) [][]byte {
			r.raw[1], r.raw[2] = 3, 3
			return [][]byte{r.raw}
		}),
		"application data in front": at(func(r wireRecord) [][]byte {
			return [][]byte{record(recordApplicationData, []byte("GET / HTTP/1.1\r\n\r\n")), r.raw}
		}),
		"change cipher spec in front": at(func(r wireRecord) [][]byte {
			return [][]byte{record(recordChangeCipherSpec, []byte{1}), r.raw}
		}),
		"a fatal alert instead": at(func(wireRecord) [][]byte { return [][]byte{record(recordAlert, []byte{2, 40})} }),
		"an endless record": at(func(r wireRecord) [][]byte {
			return [][]byte{record(r.kind(), make([]byte, maxCiphertext+1))}
		}),
		"unknown record type": at(func(r wireRecord) [][]byte { return [][]byte{record(99, []byte{1}), r.raw} }),
	}
	if i+1 < n {
		var held []byte
		ways["swapped with the next"] = func(r wireRecord) [][]byte {
			switch {
			case r.fromClient == fromClient && r.index == i:
				held = r.raw
				return nil
			case r.fromClient == fromClient && r.index == i+1:
				return [][]byte{r.raw, held}
			}
			return unchanged(r)
		}
	}
	if plainMessage {
		ways["body cut by a byte"] = at(func(r wireRecord) [][]byte {
			b := r.body()
			if len(b) == 4 { // server hello done has none
				return [][]byte{record(r.kind(), b[:3])}
			}
			return [][]byte{record(r.kind(), append(header(b[0], len(b)-5), b[4:len(b)-1]...))}
		})
		ways["body longer by a byte"] = at(func(r wireRecord) [][]byte {
			b := r.body()
			return [][]byte{record(r.kind(), append(append(header(b[0], len(b)-3), b[4:]...), 0))}
		})
		ways["body empty"] = at(func(r wireRecord) [][]byte {
			if len(r.body()) == 4 { // server hello done is empty as it is
				return nil
			}
			return [][]byte{record(r.kind(), header(r.body()[0], 0))}
		})
		ways["a byte behind the message"] = at(func(r wireRecord) [][]byte {
			return [][]byte{record(r.kind(), append(slices.Clone(r.body()), typeFinished))}
		})
		ways["body of 16 MiB announced"] = at(func(r wireRecord) [][]byte {
			b := r.body()
			return [][]byte{record(r.kind(), append(header(b[0], 1<<24-1), b[4:]...))}
		})
		ways["another message type"] = at(func(r wireRecord) [][]byte {
			r.body()[0] ^= 0x40
			return [][]byte{r.raw}
		})
		ways["finished too early"] = at(func(r wireRecord) [][]byte {
			return [][]byte{record(recordHandshake, append(header(typeFinished, 12), make([]byte, 12)...))}
		})
	}
	names := make([]string, 0, len(ways))
	for way := range ways {
		names = append(names, way)
	}
	slices.Sort(names)
	for _, way := range names {
		server, client := setup()
		// The session cache would show a session that must not be.
		server.SessionCache = NewLRUSessionCache(4)
		res := relayed(t, server, client, ways[way])
		receiver, sender := res.serverErr, res.clientErr
		if !fromClient {
			receiver, sender = sender, receiver
		}
		where := fmt.Sprintf("record %d, from the client %v, %s", i, fromClient, way)
		// Behind its Finished a sender may have got all that it waits for.
		if receiver == nil || sender == nil && !(encrypted && way == "doubled") {
			t.Errorf("%s: receiver %v, sender %v", where, receiver, sender)
			continue
		}
		if way == "a fatal alert instead" {
			want := AlertHandshakeFailure
			if encrypted {
				want = AlertBadRecordMAC // nobody believes an alert in the clear now
			}
			if a, remote, ok := alertOf(receiver); !ok || remote == encrypted || a != want {
				t.Errorf("%s: the receiver has %v", where, receiver)
			}
			continue
		}
		if !said(receiver) && !said(sender) && !(endOfFlight && slices.Contains(waits, way)) {
			t.Errorf("%s: nobody said why: receiver %v, sender %v", where, receiver, sender)
		}
	}
}

// waits are the ways after which the receiver of the last record of a flight
// still waits for the rest of it.
var waits = []string{"dropped", "last byte cut from the record", "body cut by a byte", "body empty", "last bit flipped", "swapped with the next"}

// said reports whether err is an alert that its side sent.
func said(err error) bool {
	_, remote, ok := alertOf(err)
	return ok && !remote
}

// TestHandshakeInPieces cuts every handshake message in the clear into records
// of one byte, and joins all that come together into one record. Both are
// legal.
func TestHandshakeInPieces(t *testing.T) {
	for name, setup := range setups(t) {
		t.Run(name, func(t *testing.T) {
			encrypted := map[bool]bool{}
			res := relayed(t, first(setup()), second(setup()), func(r wireRecord) [][]byte {
				if r.kind() == recordChangeCipherSpec {
					encrypted[r.fromClient] = true
				}
				if encrypted[r.fromClient] || r.kind() != recordHandshake {
					return unchanged(r)
				}
				var out [][]byte
				for _, b := range r.body() {
					out = append(out, record(recordHandshake, []byte{b}))
				}
				return out
			})
			if res.serverErr != nil || res.clientErr != nil {
				t.Errorf("bytes: server %v, client %v", res.serverErr, res.clientErr)
			}
			res = relayed(t, first(setup()), second(setup()), func(r wireRecord) [][]byte {
				var out [][]byte
				for i := range r.raw {
					out = append(out, r.raw[i:i+1])
				}
				return out
			})
			if res.serverErr != nil || res.clientErr != nil {
				t.Errorf("transport of single bytes: server %v, client %v", res.serverErr, res.clientErr)
			}
			var joined []byte
			sealed := false
			res = relayed(t, first(setup()), second(setup()), func(r wireRecord) [][]byte {
				if r.fromClient {
					return unchanged(r)
				}
				sealed = sealed || r.kind() == recordChangeCipherSpec
				if sealed || r.kind() != recordHandshake {
					return unchanged(r)
				}
				b := r.body()
				if b[0] == typeServerHelloDone && len(b) == 4 {
					return [][]byte{record(recordHandshake, append(joined, b...))}
				}
				if slices.Contains([]byte{typeServerHello, typeCertificate, typeServerKeyExchange, typeCertificateRequest}, b[0]) {
					joined = append(joined, b...)
					return nil
				}
				return unchanged(r)
			})
			if res.serverErr != nil || res.clientErr != nil {
				t.Errorf("joined: server %v, client %v", res.serverErr, res.clientErr)
			}
			if len(joined) == 0 {
				t.Error("nothing was joined")
			}
		})
	}
}

// TestFloodsEnd: a peer that sends what is ignored, without end, is cut off.
func TestFloodsEnd(t *testing.T) {
	site := newSite(t)
	setup := func() (*Config, *Config) { return site.configs(ECC_SM4_GCM_SM3, false) }
	for name, flood := range map[string][]byte{
		"warnings": record(recordAlert, []byte{1, 90}),
	} {
		for _, fromClient := range []bool{true, false} {
			sent := 0
			res := relayed(t, first(setup()), second(setup()), func(r wireRecord) [][]byte {
				if r.fromClient != fromClient || r.index != 0 {
					return unchanged(r)
				}
				sent++
				return [][]byte{bytes.Repeat(flood, 1000), r.raw}
			})
			if !res.refused() || sent == 0 {
				t.Errorf("%s, client %v: server %v, client %v", name, fromClient, res.serverErr, res.clientErr)
			}
		}
	}
}
