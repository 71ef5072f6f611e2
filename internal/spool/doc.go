// Package spool keeps records that must not be lost until somebody has taken
// them: a log of segments in a folder, written ahead of sending (CSA GCR
// 002-2025 §6.2, §7.2 and §9.2 want reports of an outage kept and sent
// afterwards). It moves bytes and knows nothing of their meaning.
//
//	s, err := spool.Open(spool.Config{Dir: dir, Key: key, Seal: sm4gcm.New})
//	seq, err := s.Append(ctx, spool.Alert, payload) // returns when it is on disk
//	records, err := s.Next(spool.Alert, 0, 64)      // oldest first
//	err = s.Ack(spool.Alert, seq)                   // forget it
//	err = s.Close()
//
// # What it promises
//
// Append of the classes [Alert], [Identity] and [Status] returns after
// fdatasync: the record survives a power cut. Append of [Audit] returns after
// the write: the record survives the death of the process, and a power cut
// after at most [Config.Window]. Its callers meet a sync only where a segment
// ends, once in 8 MiB, and when the disk is four windows behind. Next gives only
// what is synced, so what a receiver has seen can not vanish here and its number
// can not come again.
//
// Every sequence number ends in one of three ways: acknowledged, still here, or
// in a [Gap]. A gap is itself a record of the log: whatever is dropped, damaged
// or refused is named, with its count and reason, and [Spool.Prove] recomputes
// that claim from the disk.
//
// Delivery is at least once: an Ack is saved within [Config.SaveEvery], so a
// crash may bring a few acknowledged records back. Records need an id of their
// own.
//
// # Walk of a record
//
//  1. Append copies the payload into the open batch of its class, with the next
//     sequence number, and waits (log.go).
//  2. The committer of the class takes the batch, seals each record into a
//     frame, writes all frames at once and syncs once (commit.go). Whoever came
//     in the meantime is the next batch: one sync serves them all.
//  3. Next finds the segment by its index, reads, checks and opens the frames
//     (read.go). Ack adds the number to the settled ones; the keeper saves them
//     and removes segments that are settled to the last record (keeper.go).
//
// # Folder
//
//	lock                          held (flock) as long as the spool is open
//	reserve                       space that full disks leave for alerts
//	alert/ identity/ audit/ status/
//	    cursor                    what is settled; replaced by rename
//	    ORDINAL-FIRST-SALT.seg    segments, all numbers in hexadecimal
//
// Each opening writes a segment of its own with a fresh salt and never appends
// to one of an earlier process; a segment that saw any failure of the disk is
// never written again either. So no key and nonce ever seal two records, even
// when a copy of the folder is brought back. The name holds what the header
// holds: with the header destroyed, the records can still be read.
//
// # Segment, byte by byte (big endian)
//
//	0    8   "YUMENSPL"
//	8    2   version, 1
//	10   1   class
//	11   5   zero
//	16   16  salt, random
//	32   8   first: records from here on in older segments are void
//	40   8   made at, Unix nanoseconds
//	48   32  chain value of the segment before
//	80   32  HMAC-SM3(state key, "header", bytes 0 to 79)
//	112  12  zero
//	124  4   CRC-32C of bytes 0 to 123
//	128      frames
//
// The segment's key is the first 16 bytes of HMAC-SM3(state key, "segment" |
// class | salt | first).
//
// # Frame
//
//	0    2   "YM"
//	2    1   kind: 0 record, 1 gaps, 2 end of segment
//	3    1   class
//	4    4   n, length of what follows byte 28
//	8    8   sequence number
//	16   8   time, Unix nanoseconds
//	24   4   CRC-32C of bytes 0 to 23 and 28 to 28+n
//	28   n   sealed payload: ciphertext and 16 bytes of tag
//
// Sealed with the nonce 0 0 0 kind | sequence number, bytes 0 to 23 being
// additional data. The chain is SM3: it starts as SM3(chain value of the
// segment before | class | salt | first), and each frame makes it SM3(chain |
// tag): the tag stands for the whole frame. The end frame, which a segment gets
// when it is full or the spool closes, carries the number of frames (8 bytes)
// and the chain value before it. A segment whose process was killed has none;
// the next one takes its chain value over.
//
// The payload of a gaps frame is a list, each entry 33 bytes: from, to, count,
// time (8 bytes each), reason (1 byte).
//
// # Cursor
//
//	0    8   "YUMENCUR"
//	8    2   version, 1
//	10   1   class
//	11   1   zero
//	12   4   s, number of settled spans
//	16   4   g, number of gaps
//	20   8   next sequence number
//	28       s × (from 8, to 8), then g × gap as above
//	     32  HMAC-SM3(state key, "cursor", all before)
//
// A cursor that fails its check is passed over: everything that is still in the
// segments is pending again.
//
// # Damage
//
// At opening every frame's CRC is checked. A bad stretch with good frames
// behind it is a hole: the records in it become a gap, the others are read as
// if nothing had been. A bad end without an end frame is the torn tail of a
// crash and is passed over. Opening is never refused for damage.
//
// # Bounds
//
// Each class has a cap, and all together may have one. At a cap the oldest
// segment goes, in the order status, audit, identity, alert, and never a higher
// class for a lower one. On a full disk new records are refused, and refusing
// costs no system call; for alerts and identity first the reserve is given up,
// then segments of status and audit. What waits in memory is bounded by 4 MiB
// and four windows a class.
package spool
