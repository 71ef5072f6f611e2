/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the guard and its user space share. bpf/layout_test.go ties the numbers
 * to Go's; the layouts come to Go by bpf2go from the object's type information. */
#ifndef YUMEN_GUARD_H
#define YUMEN_GUARD_H

#include <linux/types.h>

#define MAX_MANAGEMENT 32

/* Families of a counter. */
enum family { FAMILY_OTHER = 0, FAMILY_V4 = 1, FAMILY_V6 = 2 };

/* Verdicts: below 32 the packet passes, from 32 on it is dropped. A dropped
 * packet's verdict is reason 900 + verdict - 31 of internal/reason. */
enum verdict {
	V_NONE = 0,
	V_ARP = 1,
	V_NEIGHBOUR = 2,
	V_ICMP = 3,
	V_DHCP = 4,
	V_PUBLISHED = 5,
	V_MANAGEMENT = 6,
	V_ESTABLISHED = 7,
	V_REPLY = 8,
	V_FLOW = 9,
	V_PERMIT = 10,
	V_TOKEN = 11,
	V_PING = 12,
	V_COOKIE = 13, /* a SYN that was answered here */

	V_MALFORMED = 32,
	V_LINK = 33,
	V_PROTOCOL = 34,
	V_FRAGMENT = 35,
	V_EXTENSION = 36,
	V_SOURCE = 37,
	V_UNAUTHORIZED = 38,
	V_DENIED = 39,
	V_RATE = 40,
	V_ICMP_RATE = 41,
	V_ICMP_TYPE = 42,
	V_TCP_FLAGS = 43,
	V_KNOCK = 44, /* taken from the wire for user space: no refusal */
	V_KNOCK_LOST = 45,
	V_TICKET_UNKNOWN = 46,
	V_TICKET_EXPIRED = 47,
	V_TICKET_PORT = 48,
	V_TICKET_RATE = 49,
	V_TOKEN_FORGED = 50,
	V_TOKEN_REPLAYED = 51,
	V_MAX = 64,
};

/* An address is IPv6; an IPv4 one is mapped (RFC 4291, 2.5.5.2). Its words are
 * in network order. */
struct address {
	__u32 w[4];
};

struct prefix {
	struct address address;
	struct address mask;
};

/* settings stand in read-only data: another value is another program, put in
 * force by one update of the link. */
struct guard_settings {
	__u64 tcp_published[1024]; /* a bit for each port */
	__u64 udp_published[1024];
	__u64 udp_token[1024]; /* ports whose first datagram may end in a token */
	struct prefix management[MAX_MANAGEMENT];
	__u64 rate_interval;  /* ns between packets of a source to published ports; 0: no limit */
	__u64 rate_burst;     /* ns of credit */
	__u64 icmp_interval;  /* the same for ICMP errors and echo replies */
	__u64 icmp_burst;
	__u64 ticket_interval; /* the same for the uses of one ticket */
	__u64 ticket_burst;
	__u64 flow_idle;      /* MOMENTs that an opened UDP flow may be silent */
	__u64 syn_open;       /* MOMENTs that a token in a SYN opens its 5-tuple */
	__u32 managements;    /* in use */
	__u32 rate_mask;      /* buckets - 1 */
	__u32 flow_mask;      /* buckets - 1 */
	__u16 knock_port;     /* 0: none */
	__u8 dhcp;
	__u8 ping;
	__u8 syn_token;
	__u8 pad[7];
};

/* tune is what user space changes while the program runs. */
struct tuning {
	__u32 known_half;  /* which half of the prefilter is read */
	__u32 sample_mask; /* a drop is sampled when its count & mask is 0 */
	__u32 deny_trie4;  /* networks in the trie that the bitmap does not show */
	__u32 deny_trie6;
	__u32 epoch; /* another one when a ticket went or a network was denied */
	__u32 samples; /* that were taken */
	__u32 syn_cookies; /* SYNs to published ports are answered here */
	__u32 clock; /* moment in which a flow was written the last time */
	__u32 known_shift[2]; /* of each half of the prefilter: what of a hash is its word */
	__u64 seed[2]; /* of the hash of sources; drawn when the map is made */
	__u64 secret[4]; /* of the hash of flows, odd; the same */
	__u64 narrowed;  /* epoch << 32 | moment in which the program found it */
};

struct ticket {
	__u64 key[2];
	__u64 until;  /* CLOCK_MONOTONIC, ns */
	__u64 window; /* newest counter << 32 | the 32 before it */
	__u64 tat;    /* GCRA of its uses */
	__u16 port;   /* 0: none but the knock port */
	__u8 protocol; /* 0: any */
	__u8 knock;   /* may knock */
	__u32 pad;
};

/* whom is what a knock's opening is for. The map's key is a keyed hash of it,
 * so that a look-up hashes and compares one word; the rest is compared here. */
struct whom {
	struct address source;
	__u16 port;     /* network order */
	__u8 protocol;
	__u8 pad;
};

/* opening lets the next connection of a source to a port in: one only. */
struct opening {
	__u64 until;
	__u64 alias; /* of the ticket that opened it */
	__u32 bound; /* 0, or 0x10000 | source port that took it */
	struct whom whom;
};

/* Flows that are open, one 5-tuple each, stand in buckets of one cache line. A
 * flow has the choice of two buckets. Of its 5-tuple a hash is kept under a secret
 * that nobody outside has, 40 bits of it beside those that choose the bucket: that
 * a packet is taken for another flow's has a chance of 2^-37. */
#define FLOW_WAYS 4
#define MOMENT 4       /* bits of a moment's length in jiffies: 16 to 160 ms, far below flow_idle */
#define MOMENT_BITS 24 /* of the moments that are kept apart, three days to a month */
#define FLOW_BUSY 1    /* a slot that is being written; 0: free */

struct flow_bucket {
	struct {
		__u64 seen;  /* tag << MOMENT_BITS | moment of the last look at ticket and deny lists */
		__u64 alias; /* of the ticket that opened it */
	} slot[FLOW_WAYS];
};

struct trie_key {
	__u32 bits;
	struct address address;
};

struct drop_event {
	__u64 time;
	struct address source;
	__u16 source_port;
	__u16 port;
	__u8 protocol;
	__u8 family;
	__u8 verdict;
	__u8 pad;
	__u32 weight; /* how many drops it stands for */
	__u32 length;
};

#define KNOCK_MAX 256

struct knock_event {
	__u64 time;
	__u64 alias;
	struct address source;
	__u16 source_port; /* network order */
	__u16 length;
	__u8 data[KNOCK_MAX];
	__u32 pad;
};

#endif
