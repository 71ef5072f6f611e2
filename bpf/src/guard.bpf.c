// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The guard: what nobody admitted is dropped here, before it costs anything.
 *
 * The steps of a packet, in order (guard, at the end of the file):
 *
 *	1 parse       link, VLAN tags, IP header, extension headers, ports
 *	2 sort        neighbour discovery and ICMP go their own way
 *	3 admit       published, established, opened, token, managed: else dropped
 *	4 deny        only what would pass is compared with the deny lists
 *	5 account     counter, sampled event
 *
 * Functions are global, so that each is verified once and alone: everything in
 * line is a thousand times as much work for the verifier. They take what they
 * need by pointer, offsets instead of packet pointers.
 *
 * A token is checked before any state is made for its sender, so that senders
 * of forged ones cannot fill a map.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "guard.h"

#define GLOBAL __attribute__((noinline))
#define TOKEN_BYTES 20
#define MAX_EXTENSIONS 6
#define FIRST_CLIENT 1024 /* below are servers, which wait for no answers */

char LICENSE[] SEC("license") = "Dual MIT/GPL"; /* the loader's word for: GPL helpers may be used */

volatile const struct guard_settings settings = {};

/* ---- maps ---- */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 3 * V_MAX);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct tuning);
} tune SEC(".maps");

/* Two halves of up to 2^18 words: as many as there are sources, so that few of
 * them stay in the nearest cache. Sources that something may be open for: four
 * bits in one word. Both halves are written, one is read. */
#define KNOWN_WORDS (1 << 18)
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * KNOWN_WORDS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} known SEC(".maps");

/* A bit for each port that a ticket or a knock was ever for: at the others
 * nothing is open, whoever sends. Behind them a bit for each UDP port that a
 * knock opened. */
#define KNOCKED_WORDS 1024
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * KNOCKED_WORDS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} openable SEC(".maps");

/* Two bits for each IPv4 /24, and for the hash of each IPv6 /48: 1 something is
 * in deny_exact, 2 something is in deny_trie. */
#define DENY_WORDS (1 << 19)
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DENY_WORDS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} deny_bits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64); /* IPv4 address, or the upper half of an IPv6 one */
	__type(value, __u8);
} deny_exact SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct trie_key);
	__type(value, __u8);
} deny_trie SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u64);
} rates SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct ticket);
} tickets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64); /* opening_key */
	__type(value, struct opening);
} openings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_MMAPABLE); /* for user space, and for lines of its own */
	__type(key, __u32);
	__type(value, struct flow_bucket);
} flows SEC(".maps");

/* The hash of each flow's source, from which the prefilter is made anew. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384 * FLOW_WAYS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} flow_sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} knocks SEC(".maps");

/* bpf2go keeps the types that these name. */
const struct drop_event *unused_drop_event __attribute__((unused));
const struct knock_event *unused_knock_event __attribute__((unused));

/* ---- the packet as the steps see it ---- */

struct packet {
	struct address source;
	struct address destination;
	__u64 hash; /* of the source; from here on what find_opening leaves */
	__u64 flow; /* hash of the 5-tuple; 0: nobody looked for it */
	__u32 now;  /* moment */
	__u32 slot; /* that the flow has and that does not count, plus 1; 0: none */
	__u32 half; /* of the prefilter, that has the source, plus 1; 0: neither */
	__u16 ip_at;   /* offset of the IP header */
	__u16 at;      /* offset of what is to be read next: at last, of the ports */
	__u16 end;     /* offset behind the IP packet */
	__u16 payload; /* offset of what the transport carries */
	__u16 source_port; /* network order */
	__u16 port;        /* network order */
	__u8 family;
	__u8 protocol;
	__u8 fragment; /* any fragment, also the first */
	__u8 flags;    /* of TCP; type of ICMP */
	__u8 hops;
};

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

/* here returns a pointer to n bytes at offset at, or 0. */
static __always_inline void *here(struct xdp_md *ctx, __u32 at, __u32 n)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	asm volatile("" : "+r"(at)); /* what is compared is what is added */
	if (at > 4096)
		return 0;
	if (data + at + n > end)
		return 0;
	return data + at;
}

/* holds reports whether the frame has n bytes. The helper is asked only for
 * what is not in the linear part. */
static __always_inline int holds(struct xdp_md *ctx, __u32 n)
{
	return n <= ctx->data_end - ctx->data || n <= bpf_xdp_get_buff_len(ctx);
}

/* ---- 1 parse ---- */

/* parse_link leaves the offset behind the link header. */
static __always_inline int parse_link(struct xdp_md *ctx, struct packet *p)
{
	struct ethhdr *eth;
	__u16 type;

	if (!p)
		return V_MALFORMED;
	eth = here(ctx, 0, sizeof(*eth));
	if (!eth)
		return V_MALFORMED;
	type = eth->h_proto;
	p->at = sizeof(*eth);
	for (int i = 0; i < 2; i++) {
		__be16 *tag;

		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		tag = here(ctx, p->at, 4);
		if (!tag)
			return V_MALFORMED;
		type = tag[1];
		p->at += 4;
	}
	if (type == bpf_htons(ETH_P_ARP))
		return V_ARP;
	if (type == bpf_htons(ETH_P_IP))
		p->family = FAMILY_V4;
	else if (type == bpf_htons(ETH_P_IPV6))
		p->family = FAMILY_V6;
	else
		return V_LINK;
	return V_NONE;
}

/* parse_v4 reads the IPv4 header (RFC 791); options are stepped over. */
static __always_inline int parse_v4(struct xdp_md *ctx, struct packet *p)
{
	struct iphdr *ip;
	__u32 header, total, first;

	if (!p)
		return V_MALFORMED;
	ip = here(ctx, p->at, sizeof(*ip));
	if (!ip)
		return V_MALFORMED;
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || total < header || !holds(ctx, p->at + total))
		return V_MALFORMED;
	p->source.w[2] = bpf_htonl(0xffff);
	p->source.w[3] = ip->saddr;
	p->destination.w[2] = bpf_htonl(0xffff);
	p->destination.w[3] = ip->daddr;
	p->protocol = ip->protocol;
	p->hops = ip->ttl;
	p->fragment = (ip->frag_off & bpf_htons(0x3fff)) != 0;
	p->end = p->at + total;
	p->at += header;
	first = bpf_ntohl(ip->saddr) >> 24;
	if (first == 0 || first == 127 || first >= 224)
		return V_SOURCE;
	return V_NONE;
}

/* parse_v6 reads the IPv6 header and its extension headers (RFC 8200). */
GLOBAL int parse_v6(struct xdp_md *ctx, struct packet *p)
{
	struct ipv6hdr *ip;
	__u32 payload;
	__u8 next;

	if (!p)
		return V_MALFORMED;
	ip = here(ctx, p->at, sizeof(*ip));
	if (!ip)
		return V_MALFORMED;
	payload = bpf_ntohs(ip->payload_len);
	if (ip->version != 6 || payload == 0 || !holds(ctx, p->at + sizeof(*ip) + payload))
		return V_MALFORMED;
	__builtin_memcpy(&p->source, &ip->saddr, sizeof(p->source));
	__builtin_memcpy(&p->destination, &ip->daddr, sizeof(p->destination));
	p->hops = ip->hop_limit;
	next = ip->nexthdr;
	p->at += sizeof(*ip);
	p->end = p->at + payload;
	for (int i = 0; i <= MAX_EXTENSIONS; i++) {
		__u8 *ext;
		__u32 size;

		switch (next) {
		case IPPROTO_HOPOPTS:
			if (i != 0)
				return V_EXTENSION; /* only the first may be it */
			break;
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_AH:
		case IPPROTO_FRAGMENT:
			break;
		default:
			p->protocol = next;
			/* A mapped address on the wire would be read as IPv4. */
			if (p->source.w[0] == 0 && p->source.w[1] == 0 && p->source.w[2] == bpf_htonl(0xffff))
				return V_SOURCE;
			if ((p->source.w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000))
				return V_SOURCE; /* multicast */
			if (p->source.w[0] == 0 && p->source.w[1] == 0 && p->source.w[2] == 0) {
				/* ::, which duplicate address detection uses, and ::1 */
				if (p->source.w[3] != 0 || next != IPPROTO_ICMPV6)
					return V_SOURCE;
			}
			return V_NONE;
		}
		if (i == MAX_EXTENSIONS)
			return V_EXTENSION;
		ext = here(ctx, p->at, 8);
		if (!ext || p->at + 8 > p->end)
			return V_MALFORMED;
		if (next == IPPROTO_FRAGMENT) {
			p->fragment = 1;
			size = 8;
			if ((ext[2] | (ext[3] & 0xf8)) != 0) { /* not the first: no ports follow */
				p->protocol = ext[0];
				p->at += size;
				return V_NONE;
			}
		} else if (next == IPPROTO_AH) {
			size = (ext[1] + 2) * 4;
		} else {
			size = (ext[1] + 1) * 8;
		}
		next = ext[0];
		p->at += size;
		if (p->at > p->end)
			return V_MALFORMED;
	}
	return V_EXTENSION;
}

/* parse_transport reads ports and flags, or the type of ICMP. */
static __always_inline int parse_transport(struct xdp_md *ctx, struct packet *p)
{
	__u32 room;

	if (!p)
		return V_MALFORMED;
	if (p->at > p->end)
		return V_MALFORMED;
	room = p->end - p->at;
	if (p->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = here(ctx, p->at, sizeof(*tcp));
		__u32 header;

		if (!tcp || room < sizeof(*tcp))
			return V_MALFORMED;
		header = tcp->doff * 4;
		if (header < sizeof(*tcp) || header > room)
			return V_MALFORMED;
		p->source_port = tcp->source;
		p->port = tcp->dest;
		p->flags = ((__u8 *)tcp)[13];
		p->payload = p->at + header;
		if (p->source_port == 0 || p->port == 0)
			return V_MALFORMED;
		if ((p->flags & TCP_SYN) && (p->flags & (TCP_FIN | TCP_RST)))
			return V_TCP_FLAGS;
		if (!(p->flags & (TCP_SYN | TCP_ACK | TCP_RST)))
			return V_TCP_FLAGS;
		return V_NONE;
	}
	if (p->protocol == IPPROTO_UDP) {
		struct udphdr *udp = here(ctx, p->at, sizeof(*udp));
		__u32 length;

		if (!udp || room < sizeof(*udp))
			return V_MALFORMED;
		length = bpf_ntohs(udp->len);
		if (length < sizeof(*udp) || length > room)
			return V_MALFORMED;
		p->source_port = udp->source;
		p->port = udp->dest;
		p->payload = p->at + sizeof(*udp);
		p->end = p->at + length;
		if (p->source_port == 0 || p->port == 0)
			return V_MALFORMED; /* 0 would meet the key of knocks as its own */
		return V_NONE;
	}
	if (p->protocol == (p->family == FAMILY_V4 ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		__u8 *icmp = here(ctx, p->at, 8);

		if (!icmp || room < 8)
			return V_MALFORMED;
		p->flags = icmp[0];
		return V_NONE;
	}
	return V_PROTOCOL;
}

/* ---- what sources are known for ---- */

static __always_inline struct tuning *tuned(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tune, &zero);
}

/* mix is a keyed hash of two words. */
static __always_inline __u64 mix(const struct tuning *t, __u64 a, __u64 b)
{
	__u64 h = (a ^ t->seed[0]) * 0x9e3779b97f4a7c15ULL;

	h = (h ^ (h >> 32) ^ b ^ t->seed[1]) * 0xd6e8feb86659fd93ULL;
	h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93ULL;
	return h ^ (h >> 32);
}

static __always_inline __u64 upper(const struct address *a)
{
	return ((__u64)bpf_ntohl(a->w[0]) << 32) | bpf_ntohl(a->w[1]);
}

static __always_inline __u64 lower(const struct address *a)
{
	return ((__u64)bpf_ntohl(a->w[2]) << 32) | bpf_ntohl(a->w[3]);
}

static __always_inline __u64 known_mask(__u64 h)
{
	return (1ULL << (h & 63)) | (1ULL << ((h >> 6) & 63)) | (1ULL << ((h >> 12) & 63)) | (1ULL << ((h >> 18) & 63));
}

static __always_inline __u64 source_hash(const struct packet *p, const struct tuning *t)
{
	return mix(t, *(__u64 *)&p->source.w[0], *(__u64 *)&p->source.w[2]);
}

/* known_word is the place of the source with hash h in a half. */
static __always_inline __u32 known_word(__u64 h, const struct tuning *t, __u32 half)
{
	__u32 shift = *(volatile const __u32 *)&t->known_shift[half];

	return ((h >> (shift & 63)) & (KNOWN_WORDS - 1)) + half * KNOWN_WORDS;
}

/* is_known reports whether something may be open for the source whose hash is h,
 * by one half of the prefilter. */
static __always_inline int is_known(__u64 h, const struct tuning *t, __u32 half)
{
	__u32 index = known_word(h, t, half);
	__u64 mask = known_mask(h), *word = bpf_map_lookup_elem(&known, &index);

	return word && (*word & mask) == mask;
}

/* is_openable reports whether anything may be open at port; knocked: whether
 * something may that a knock opened, for UDP. */
static __always_inline int is_openable(__u16 port, int knocked)
{
	__u32 n = bpf_ntohs(port), index = (n >> 6) + (knocked ? KNOCKED_WORDS : 0);
	__u64 *word = bpf_map_lookup_elem(&openable, &index);

	return word && (*word >> (n & 63)) & 1;
}

/* make_known has both halves know a source, of which one may do so already. */
static __always_inline void make_known(__u64 h, const struct tuning *t, __u32 known_in)
{
	__u64 mask = known_mask(h), *word;

	for (__u32 half = 0; half < 2; half++) {
		__u32 index = known_word(h, t, half);

		if (half + 1 == known_in)
			continue;
		word = bpf_map_lookup_elem(&known, &index);
		if (word && (*word & mask) != mask)
			__sync_fetch_and_or(word, mask);
	}
}

/* gcra takes one from the credit at tat and reports whether it was there. */
static __always_inline int gcra(__u64 *tat, __u64 now, __u64 interval, __u64 burst)
{
	__u64 old = *tat, next = old > now ? old : now;

	next += interval;
	if (next - now > burst + interval)
		return 0;
	*tat = next; /* lost to another CPU: one more passes */
	return 1;
}

/* within_rate is one source's rate: an IPv4 address, or an IPv6 /64. Buckets are
 * shared by few sources, and none is made for anybody. */
GLOBAL int within_rate(struct packet *p, int icmp)
{
	__u64 interval = icmp ? settings.icmp_interval : settings.rate_interval;
	__u64 burst = icmp ? settings.icmp_burst : settings.rate_burst;
	struct tuning *t = tuned();
	__u32 index;
	__u64 *tat;

	if (!p || !t || interval == 0)
		return 1;
	index = mix(t, upper(&p->source), p->family == FAMILY_V4 ? lower(&p->source) : 1 + (icmp != 0)) + (icmp != 0);
	index &= settings.rate_mask;
	tat = bpf_map_lookup_elem(&rates, &index);
	if (!tat)
		return 1;
	return gcra(tat, bpf_ktime_get_coarse_ns(), interval, burst);
}

/* is_denied compares the source with the deny lists. */
GLOBAL int is_denied(struct packet *p)
{
	__u32 slot, index;
	__u64 key, *word, bits;
	struct tuning *t;

	if (!p)
		return 1;
	t = tuned();
	if (!t)
		return 1;
	if (p->family == FAMILY_V4) {
		key = lower(&p->source);
		slot = (__u32)key >> 8;
	} else {
		key = upper(&p->source);
		slot = mix(t, key >> 16, 0) >> 40;
	}
	index = slot >> 5;
	word = bpf_map_lookup_elem(&deny_bits, &index);
	if (!word)
		return 1;
	bits = (*word >> ((slot & 31) * 2)) & 3;
	if ((bits & 1) && bpf_map_lookup_elem(&deny_exact, &key))
		return 1;
	if ((bits & 2) || (p->family == FAMILY_V4 ? t->deny_trie4 : t->deny_trie6)) {
		struct trie_key k = {.bits = 128, .address = p->source};

		if (bpf_map_lookup_elem(&deny_trie, &k))
			return 1;
	}
	return 0;
}

/* is_managed compares the words that differ most first. */
GLOBAL int is_managed(struct packet *p)
{
	if (!p)
		return 0;
	for (__u32 i = 0; i < MAX_MANAGEMENT; i++) {
		volatile const struct prefix *m = &settings.management[i];

		if (i >= settings.managements)
			break;
		if ((p->source.w[3] & m->mask.w[3]) == m->address.w[3] && (p->source.w[0] & m->mask.w[0]) == m->address.w[0] &&
		    (p->source.w[1] & m->mask.w[1]) == m->address.w[1] && (p->source.w[2] & m->mask.w[2]) == m->address.w[2])
			return 1;
	}
	return 0;
}

/* ---- sockets of this host ---- */

/* tuple_of fills t and returns its size, which tells the helper the family. */
static __always_inline __u32 tuple_of(const struct packet *p, struct bpf_sock_tuple *t)
{
	if (p->family == FAMILY_V4) {
		t->ipv4.saddr = p->source.w[3];
		t->ipv4.daddr = p->destination.w[3];
		t->ipv4.sport = p->source_port;
		t->ipv4.dport = p->port;
		return sizeof(t->ipv4);
	}
	__builtin_memcpy(t->ipv6.saddr, &p->source, 16);
	__builtin_memcpy(t->ipv6.daddr, &p->destination, 16);
	t->ipv6.sport = p->source_port;
	t->ipv6.dport = p->port;
	return sizeof(t->ipv6);
}

/* is_established reports whether a socket, not a listener, has this 5-tuple. */
GLOBAL int is_established(struct xdp_md *ctx, struct packet *p)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	__u32 n;
	int yes;

	if (!p)
		return 0;
	n = tuple_of(p, &t);
	sk = bpf_skc_lookup_tcp(ctx, &t, n, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	yes = sk->state != BPF_TCP_LISTEN;
	bpf_sk_release(sk);
	return yes;
}

/* is_reply reports whether a connected UDP socket waits for this datagram. */
GLOBAL int is_reply(struct xdp_md *ctx, struct packet *p)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	__u32 n;
	int yes;

	if (!p)
		return 0;
	n = tuple_of(p, &t);
	sk = bpf_sk_lookup_udp(ctx, &t, n, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	yes = sk->state == BPF_TCP_ESTABLISHED;
	bpf_sk_release(sk);
	return yes;
}

/* ---- SYN cookies ---- */

struct tcp_answer {
	struct tcphdr tcp;
	__u8 mss[4];
};

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* cookie asks the listener for its SYN cookie (RFC 4987, 3.6) and fills in the
 * answer's numbers. The kernel has none before the listener's queue is full, and
 * takes no handshake up that it gave none for. Options but the size are lost. */
static __always_inline int cookie(struct xdp_md *ctx, struct packet *p, const void *ip, __u32 ip_size, struct tcp_answer *a)
{
	struct bpf_sock_tuple tuple = {};
	__u8 syn[60] = {};
	struct bpf_sock *sk;
	__u32 n = tuple_of(p, &tuple), size;
	__s64 c;

	size = p->payload - p->at;
	if (size < sizeof(struct tcphdr) + 4 || size > sizeof(syn) || bpf_xdp_load_bytes(ctx, p->at, syn, size))
		return 0;
	sk = bpf_skc_lookup_tcp(ctx, &tuple, n, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	c = bpf_tcp_gen_syncookie(sk, (void *)ip, ip_size, (struct tcphdr *)syn, size);
	bpf_sk_release(sk);
	if (c < 0)
		return 0;
	a->tcp.source = p->port;
	a->tcp.dest = p->source_port;
	a->tcp.seq = bpf_htonl((__u32)c);
	a->tcp.ack_seq = bpf_htonl(bpf_ntohl(((struct tcphdr *)syn)->seq) + 1);
	a->tcp.doff = sizeof(*a) / 4;
	a->tcp.syn = 1;
	a->tcp.ack = 1;
	a->tcp.window = bpf_htons(0xffff);
	a->mss[0] = 2;
	a->mss[1] = 4;
	a->mss[2] = (__u8)(c >> 40);
	a->mss[3] = (__u8)(c >> 32);
	return 1;
}

/* answer turns a SYN into its SYN-ACK with a cookie. What it cannot answer goes
 * on to the stack. */
GLOBAL int answer(struct xdp_md *ctx, struct packet *p)
{
	__u8 ip[sizeof(struct ipv6hdr)] = {}, link[12], back[12];
	struct tcp_answer a = {};
	__u32 size, at, sum;

	if (!p)
		return V_MALFORMED;
	size = p->family == FAMILY_V4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	if (p->ip_at + size != p->at || bpf_xdp_load_bytes(ctx, 0, link, sizeof(link)))
		return V_PUBLISHED; /* options, or extension headers */
	at = p->ip_at;
	if (p->family == FAMILY_V4) {
		struct iphdr *h = (struct iphdr *)ip;

		if (bpf_xdp_load_bytes(ctx, at, ip, sizeof(*h)) || !cookie(ctx, p, ip, sizeof(*h), &a))
			return V_PUBLISHED;
		__builtin_memset(h, 0, sizeof(*h));
		h->version = 4;
		h->ihl = 5;
		h->tot_len = bpf_htons(sizeof(*h) + sizeof(a));
		h->frag_off = bpf_htons(0x4000);
		h->ttl = 64;
		h->protocol = IPPROTO_TCP;
		h->saddr = p->destination.w[3];
		h->daddr = p->source.w[3];
		h->check = fold(bpf_csum_diff(0, 0, (__be32 *)ip, sizeof(*h), 0));
	} else {
		struct ipv6hdr *h = (struct ipv6hdr *)ip;

		if (bpf_xdp_load_bytes(ctx, at, ip, sizeof(*h)) || !cookie(ctx, p, ip, sizeof(*h), &a))
			return V_PUBLISHED;
		__builtin_memset(h, 0, sizeof(*h));
		h->version = 6;
		h->payload_len = bpf_htons(sizeof(a));
		h->nexthdr = IPPROTO_TCP;
		h->hop_limit = 64;
		__builtin_memcpy(&h->saddr, &p->destination, 16);
		__builtin_memcpy(&h->daddr, &p->source, 16);
	}
	/* An IPv4 address is mapped, its prefix sums up the same on both sides: it is
	 * taken off again. */
	sum = bpf_csum_diff(0, 0, (__be32 *)&p->source, 32, 0);
	if (p->family == FAMILY_V4) {
		__be32 prefix[2] = {bpf_htonl(0xffff), bpf_htonl(0xffff)};

		sum = bpf_csum_diff(prefix, sizeof(prefix), 0, 0, sum);
	}
	{
		__be32 pseudo[2] = {bpf_htonl(sizeof(a)), bpf_htonl(IPPROTO_TCP)};

		sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), sum);
	}
	a.tcp.check = fold((__u32)bpf_csum_diff(0, 0, (__be32 *)&a, sizeof(a), sum));
	__builtin_memcpy(back, link + 6, 6);
	__builtin_memcpy(back + 6, link, 6);
	if (bpf_xdp_store_bytes(ctx, 0, back, sizeof(back)) || bpf_xdp_store_bytes(ctx, p->at, &a, sizeof(a)))
		return V_MALFORMED;
	if (p->family == FAMILY_V4 ? bpf_xdp_store_bytes(ctx, at, ip, sizeof(struct iphdr)) : bpf_xdp_store_bytes(ctx, at, ip, sizeof(struct ipv6hdr)))
		return V_MALFORMED;
	at = p->at + sizeof(a);
	if (at < 60)
		at = 60; /* the least of Ethernet */
	size = ctx->data_end - ctx->data;
	if (size > at && bpf_xdp_adjust_tail(ctx, (int)at - (int)size))
		return V_MALFORMED;
	return V_COOKIE;
}

/* ---- permits ---- */

#define ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SIPROUND                                                                                                       \
	do {                                                                                                           \
		v0 += v1; v1 = ROTL(v1, 13); v1 ^= v0; v0 = ROTL(v0, 32);                                              \
		v2 += v3; v3 = ROTL(v3, 16); v3 ^= v2;                                                                 \
		v0 += v3; v3 = ROTL(v3, 21); v3 ^= v0;                                                                 \
		v2 += v1; v1 = ROTL(v1, 17); v1 ^= v2; v2 = ROTL(v2, 32);                                              \
	} while (0)

/* siphash7 is SipHash-2-4 of 7 bytes, which stand in the lower bits of m. */
static __always_inline __u64 siphash7(__u64 k0, __u64 k1, __u64 m)
{
	__u64 v0 = 0x736f6d6570736575ULL ^ k0, v1 = 0x646f72616e646f6dULL ^ k1;
	__u64 v2 = 0x6c7967656e657261ULL ^ k0, v3 = 0x7465646279746573ULL ^ k1;

	m |= 7ULL << 56;
	v3 ^= m; SIPROUND; SIPROUND; v0 ^= m;
	v2 ^= 0xff; SIPROUND; SIPROUND; SIPROUND; SIPROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

struct token {
	__u64 alias; /* as it lies in memory */
	__u64 mac;
	__u32 counter; /* network order */
	__u16 port;    /* network order; that the token is for */
	__u8 protocol;
	__u8 pad;
};

/* take_window takes counter from a ticket's window, each at most once. */
static __always_inline int take_window(__u64 *window, __u32 counter)
{
	for (int i = 0; i < 4; i++) {
		__u64 old = *window, next;
		__u32 top = old >> 32, bits = old, back;

		if (counter > top) {
			__u32 step = counter - top;

			/* bit 0 is the counter just below the newest */
			bits = step >= 33 ? 0 : (__u32)((((__u64)bits << 1) | 1) << (step - 1));
			next = ((__u64)counter << 32) | bits;
		} else {
			if (counter == top)
				return 0;
			back = top - counter - 1;
			if (back >= 32 || (bits >> back) & 1)
				return 0;
			next = old | (1ULL << back);
		}
		if (__sync_val_compare_and_swap(window, old, next) == old)
			return 1;
	}
	return 0;
}

/* check_token returns V_NONE for a genuine token that was not used before. */
static __always_inline int check_token(const struct token *t)
{
	struct ticket *k;
	__u64 alias, now, covered;

	if (!t)
		return V_TOKEN_FORGED;
	alias = t->alias;
	k = bpf_map_lookup_elem(&tickets, &alias);
	if (!k)
		return V_TICKET_UNKNOWN;
	covered = (__u64)t->counter | (__u64)t->port << 32 | (__u64)t->protocol << 48;
	if (siphash7(k->key[0], k->key[1], covered) != t->mac)
		return V_TOKEN_FORGED;
	now = bpf_ktime_get_coarse_ns();
	if (now >= k->until)
		return V_TICKET_EXPIRED;
	if (t->port == bpf_htons(settings.knock_port) && t->protocol == IPPROTO_UDP) {
		if (!k->knock)
			return V_TICKET_PORT;
	} else if (k->port == 0 || t->port != bpf_htons(k->port) || (k->protocol != 0 && k->protocol != t->protocol)) {
		return V_TICKET_PORT;
	}
	if (!take_window(&k->window, bpf_ntohl(t->counter)))
		return V_TOKEN_REPLAYED;
	if (settings.ticket_interval && !gcra(&k->tat, now, settings.ticket_interval, settings.ticket_burst))
		return V_TICKET_RATE;
	return V_NONE;
}

/* read_token reads a token at offset at for p's port. */
static __always_inline int read_token(struct xdp_md *ctx, const struct packet *p, struct token *t, __u32 at)
{
	__u8 *b;

	if (!p || !t)
		return 0;
	b = here(ctx, at, TOKEN_BYTES);
	if (!b || at + TOKEN_BYTES > p->end || b[0] < 0x80)
		return 0;
	/* Whole words, at any alignment: by bytes it takes as long as the look-up. */
	t->alias = *(__u64 *)b;
	t->counter = *(__u32 *)(b + 8);
	t->mac = *(__u64 *)(b + 12);
	t->port = p->port;
	t->protocol = p->protocol;
	return 1;
}

/* ---- what is open ---- */

/* stir is a bijection. A product's upper bytes depend on all of a factor: they are
 * turned down before the second, which spreads them again. */
static __always_inline __u64 stir(__u64 x, const struct tuning *t)
{
	x = bpf_cpu_to_be64(x * t->secret[1]) * t->secret[2];
	return x ^ (x >> 32);
}

/* flow_hash is a hash of the 5-tuple under secret factors. Of two IPv4 flows of a
 * protocol it is never the same: their tuple is one word, and each step can be
 * taken back. An IPv6 tuple is three. */
static __always_inline __u64 flow_hash(const struct packet *p, const struct tuning *t)
{
	__u64 x = t->secret[0] + (p->family | p->protocol << 8) * t->secret[3], ports = p->source_port | (__u64)p->port << 16;

	if (p->family == FAMILY_V6) {
		x = stir(x ^ *(__u64 *)&p->source.w[0], t);
		x = stir(x ^ *(__u64 *)&p->source.w[2], t);
	} else {
		ports |= (__u64)p->source.w[3] << 32;
	}
	x = stir(x ^ ports, t);
	return x >> MOMENT_BITS ? x : x | 1ULL << MOMENT_BITS; /* a tag is never 0 */
}

static __always_inline __u32 choice_of(__u64 flow, int choice)
{
	return (choice ? flow ^ flow >> 40 : flow) & settings.flow_mask;
}

#define MOMENTS ((1 << MOMENT_BITS) - 1)

static __always_inline __u32 moment(void)
{
	return (bpf_jiffies64() >> MOMENT) & MOMENTS;
}

/* slot_in is where a flow stands in a bucket, or FLOW_WAYS. */
static __always_inline __u32 slot_in(const struct flow_bucket *b, __u64 flow)
{
	for (__u32 i = 0; i < FLOW_WAYS; i++)
		if ((b->slot[i].seen ^ flow) >> MOMENT_BITS == 0)
			return i;
	return FLOW_WAYS;
}

/* counts reports whether what the ticket of alias opened may stay open. */
static __always_inline int counts(__u64 alias)
{
	struct ticket *k = bpf_map_lookup_elem(&tickets, &alias);

	return k && bpf_ktime_get_coarse_ns() < k->until;
}

/* find_flow looks for p's 5-tuple. One that was looked at a moment ago, and since
 * when nothing was narrowed, costs no more than its line. */
static __always_inline int find_flow(struct packet *p, struct tuning *t)
{
	__u32 now = moment(), epoch = *(volatile __u32 *)&t->epoch, index, i, age; /* read before what they stand for */
	__u64 flow = flow_hash(p, t), narrowed = *(volatile __u64 *)&t->narrowed, seen;
	struct flow_bucket *b;

	p->now = now;
	p->flow = flow;
	index = choice_of(flow, 0);
	b = bpf_map_lookup_elem(&flows, &index);
	if (!b)
		return V_NONE;
	i = slot_in(b, flow);
	if (i == FLOW_WAYS) {
		index = choice_of(flow, 1);
		b = bpf_map_lookup_elem(&flows, &index);
		if (!b)
			return V_NONE;
		i = slot_in(b, flow);
		if (i == FLOW_WAYS)
			return V_NONE;
	}
	seen = b->slot[i].seen;
	age = (now - (__u32)seen) & MOMENTS;
	/* What was seen in the moment of the narrowing, or in the next by another
	 * CPU, may have been seen before it. */
	if (age == 0 && narrowed >> 32 == epoch && ((now - (__u32)narrowed) & MOMENTS) > 1)
		return V_FLOW;
	if (narrowed >> 32 != epoch)
		t->narrowed = (__u64)epoch << 32 | now;
	if (age >= (p->protocol == IPPROTO_UDP ? settings.flow_idle : settings.syn_open) || !counts(b->slot[i].alias)) {
		p->slot = index * FLOW_WAYS + i + 1;
		return V_NONE;
	}
	if (is_denied(p) && !is_managed(p))
		return V_DENIED;
	if (t->clock != now)
		t->clock = now;
	if (p->protocol == IPPROTO_UDP) /* of TCP only the SYN comes here. What took its place meanwhile stays. */
		__sync_val_compare_and_swap(&b->slot[i].seen, seen, (seen & ~(__u64)MOMENTS) | now);
	return V_FLOW;
}

/* oldest_in is the slot of a bucket that was silent the longest, and above its two
 * bits for how many moments; a free one was since moment 0. Without branches: each
 * would double what is to be verified. */
static __always_inline __u64 oldest_in(const struct flow_bucket *b, __u32 now)
{
	__u64 best = 0;

	for (__u32 i = 0; i < FLOW_WAYS; i++) {
		__u64 seen = b->slot[i].seen, more = (((now - seen) & MOMENTS) << 2 | i) - best;

		best += more & ~(__u64)((__s64)more >> 63);
	}
	return best;
}

/* place is the slot that p's flow should take: its own, else a free one of its
 * first bucket, else of its second, else the one that was silent the longest. */
static __always_inline __u32 place(struct packet *p, const struct tuning *t)
{
	__u32 first, second;
	struct flow_bucket *b, *c;
	__u64 oldest, other;

	first = choice_of(p->flow, 0);
	second = choice_of(p->flow, 1);
	b = bpf_map_lookup_elem(&flows, &first);
	c = bpf_map_lookup_elem(&flows, &second);
	if (!b || !c)
		return 0;
	oldest = oldest_in(b, p->now);
	if (oldest >> 2 >= settings.flow_idle)
		return first * FLOW_WAYS + (oldest & 3);
	other = oldest_in(c, p->now);
	return other > oldest ? second * FLOW_WAYS + (other & 3) : first * FLOW_WAYS + (oldest & 3);
}

/* open lets p's 5-tuple in, for the ticket of alias. */
GLOBAL int open(struct packet *p, __u64 alias)
{
	struct tuning *t = tuned();
	__u32 slot, index;
	struct flow_bucket *b;
	__u64 was, *source;

	if (!p || !t)
		return 0;
	if (!p->flow) { /* a source that nothing was open for: the flow may stand here from long ago */
		p->hash = source_hash(p, t);
		if (find_flow(p, t) != V_NONE)
			return 1;
	}
	slot = p->slot ? p->slot - 1 : place(p, t);
	index = slot / FLOW_WAYS;
	slot &= FLOW_WAYS - 1;
	b = bpf_map_lookup_elem(&flows, &index);
	if (!b)
		return 0;
	was = b->slot[slot].seen;
	if (was == FLOW_BUSY || __sync_val_compare_and_swap(&b->slot[slot].seen, was, FLOW_BUSY) != was) {
		slot ^= 1; /* another CPU has just taken it */
		was = b->slot[slot].seen;
		if (was == FLOW_BUSY || __sync_val_compare_and_swap(&b->slot[slot].seen, was, FLOW_BUSY) != was)
			return 0;
	}
	b->slot[slot].alias = alias;
	/* Behind its alias. It is not looked at yet: the deny lists follow. */
	__sync_lock_test_and_set(&b->slot[slot].seen, (p->flow & ~(__u64)MOMENTS) | ((p->now - 1) & MOMENTS));
	if (t->clock != p->now)
		t->clock = p->now;
	index = index * FLOW_WAYS + slot;
	source = bpf_map_lookup_elem(&flow_sources, &index);
	if (source)
		*source = p->hash;
	make_known(p->hash, t, p->half);
	return 1;
}

/* opening_key is the key of what a knock opened for the source with hash h. */
static __always_inline __u64 opening_key(__u64 h, __u16 port, __u8 protocol)
{
	return h ^ ((__u64)port << 16 | (__u64)protocol << 32) * 0x9e3779b97f4a7c15ULL;
}

/* find_knocked looks for what a knock opened, and takes it. */
static __always_inline int find_knocked(struct packet *p)
{
	__u64 key = opening_key(p->hash, p->port, p->protocol);
	struct opening *o = bpf_map_lookup_elem(&openings, &key);
	__u32 mine, was;

	if (!o || o->whom.source.w[3] != p->source.w[3] || o->whom.source.w[2] != p->source.w[2] || o->whom.source.w[1] != p->source.w[1] ||
	    o->whom.source.w[0] != p->source.w[0] || o->whom.port != p->port || o->whom.protocol != p->protocol)
		return V_NONE;
	if (bpf_ktime_get_coarse_ns() >= o->until || !counts(o->alias))
		return V_NONE;
	mine = 0x10000 | p->source_port;
	was = o->bound;
	if (was == 0) {
		if (p->protocol == IPPROTO_TCP && !(p->flags & TCP_SYN))
			return V_NONE;
		was = __sync_val_compare_and_swap(&o->bound, 0, mine);
	}
	if (was != 0 && was != mine)
		return V_NONE;
	if (p->protocol == IPPROTO_UDP)
		open(p, o->alias);
	return V_PERMIT;
}

/* find_opening looks for what a token or a knock opened. */
GLOBAL int find_opening(struct packet *p)
{
	struct tuning *t = tuned();
	__u32 half;
	int v;

	if (!p || !t)
		return V_NONE;
	p->hash = source_hash(p, t);
	half = t->known_half & 1;
	if (!is_known(p->hash, t, half))
		return V_NONE;
	p->half = half + 1;
	v = find_flow(p, t);
	if (v != V_NONE)
		return v;
	if (p->protocol == IPPROTO_UDP && !is_openable(p->port, 1))
		return V_NONE;
	return find_knocked(p);
}

/* first_packet opens p's 5-tuple when it carries a genuine token at offset at. */
GLOBAL int first_packet(struct xdp_md *ctx, struct packet *p, __u32 at)
{
	struct token t = {};
	int v;

	if (!p || !read_token(ctx, p, &t, at))
		return V_UNAUTHORIZED;
	v = check_token(&t);
	if (v != V_NONE)
		return v;
	return open(p, t.alias) ? V_TOKEN : V_TICKET_RATE;
}

/* knock hands a datagram with a genuine token to user space. */
GLOBAL int knock(struct xdp_md *ctx, struct packet *p)
{
	struct knock_event *e;
	struct token t = {};
	__u32 n;
	int v;

	if (!p || !read_token(ctx, p, &t, p->payload))
		return V_UNAUTHORIZED;
	n = p->end - p->payload;
	if (p->end < p->payload || n > KNOCK_MAX)
		return V_UNAUTHORIZED;
	v = check_token(&t);
	if (v != V_NONE)
		return v;
	if (is_denied(p))
		return V_DENIED;
	e = bpf_ringbuf_reserve(&knocks, sizeof(*e), 0);
	if (!e)
		return V_KNOCK_LOST;
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_coarse_ns();
	e->alias = t.alias;
	e->source = p->source;
	e->source_port = p->source_port;
	e->length = n;
	if (n == 0 || n > KNOCK_MAX || bpf_xdp_load_bytes(ctx, p->payload, e->data, n)) {
		bpf_ringbuf_discard(e, 0);
		return V_MALFORMED;
	}
	bpf_ringbuf_submit(e, 0);
	return V_KNOCK;
}

/* ---- 2 and 3: who may pass ---- */

static __always_inline int port_in(volatile const __u64 *set, __u16 port)
{
	__u32 n = bpf_ntohs(port);

	return (set[(n >> 6) & 1023] >> (n & 63)) & 1;
}

/* sort_icmp: errors and echo replies pass at a rate, neighbour discovery from
 * the link always. */
GLOBAL int sort_icmp(struct packet *p)
{
	if (!p)
		return V_ICMP_TYPE;
	if (p->fragment)
		return V_FRAGMENT;
	if (p->family == FAMILY_V4) {
		switch (p->flags) {
		case 0: /* echo reply */
		case 3: /* destination unreachable */
		case 11: /* time exceeded */
		case 12: /* parameter problem */
			return within_rate(p, 1) ? V_ICMP : V_ICMP_RATE;
		case 8:
			if (settings.ping)
				return within_rate(p, 1) ? V_PING : V_ICMP_RATE;
		}
		return is_managed(p) ? V_MANAGEMENT : V_ICMP_TYPE;
	}
	switch (p->flags) {
	case 133 ... 137: /* RFC 4861, 6.1 and 7.1: not from beyond a router */
		return p->hops == 255 ? V_NEIGHBOUR : V_ICMP_TYPE;
	case 130 ... 132: /* multicast listeners, RFC 2710: hop limit 1 */
	case 143:
		return p->hops == 1 ? V_NEIGHBOUR : V_ICMP_TYPE;
	case 1 ... 4: /* errors, RFC 4443 */
	case 129:     /* echo reply */
		return within_rate(p, 1) ? V_ICMP : V_ICMP_RATE;
	case 128:
		if (settings.ping)
			return within_rate(p, 1) ? V_PING : V_ICMP_RATE;
	}
	return is_managed(p) ? V_MANAGEMENT : V_ICMP_TYPE;
}

static __always_inline int admit_tcp(struct xdp_md *ctx, struct packet *p, const struct tuning *t)
{
	int v = V_UNAUTHORIZED, syn = (p->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;

	if (!syn && is_established(ctx, p))
		return V_ESTABLISHED;
	if (port_in(settings.tcp_published, p->port))
		return syn && t->syn_cookies ? V_COOKIE : V_PUBLISHED;
	if (is_openable(p->port, 0)) {
		int o = find_opening(p);

		if (o != V_NONE)
			return o;
	}
	if (settings.syn_token && syn && p->payload + TOKEN_BYTES <= p->end) {
		v = first_packet(ctx, p, p->payload);
		if (v == V_TOKEN)
			return v;
	}
	return is_managed(p) ? V_MANAGEMENT : v;
}

static __always_inline int admit_udp(struct xdp_md *ctx, struct packet *p, const struct tuning *t)
{
	int v = V_UNAUTHORIZED, token = port_in(settings.udp_token, p->port);
	int own = token; /* a port of the gateway's, that no answer comes to */

	if (settings.knock_port && p->port == bpf_htons(settings.knock_port)) {
		v = knock(ctx, p);
		if (v != V_UNAUTHORIZED)
			return v;
		own = 1;
	}
	if (port_in(settings.udp_published, p->port))
		return V_PUBLISHED;
	if (token || is_openable(p->port, 0)) {
		int o = find_opening(p);

		if (o != V_NONE)
			return o;
	}
	if (token && p->payload + TOKEN_BYTES <= p->end) {
		v = first_packet(ctx, p, p->end - TOKEN_BYTES);
		if (v == V_TOKEN)
			return v;
	}
	if (!own && bpf_ntohs(p->port) >= FIRST_CLIENT && is_reply(ctx, p))
		return V_REPLY;
	if (settings.dhcp) {
		if (p->family == FAMILY_V4 && p->source_port == bpf_htons(67) && p->port == bpf_htons(68))
			return V_DHCP;
		if (p->family == FAMILY_V6 && p->source_port == bpf_htons(547) && p->port == bpf_htons(546))
			return V_DHCP;
	}
	return is_managed(p) ? V_MANAGEMENT : v;
}

/* judge is steps 1 to 4. */
static __always_inline int judge(struct xdp_md *ctx, struct packet *p, const struct tuning *t)
{
	int v = parse_link(ctx, p);

	if (v != V_NONE)
		return v;
	p->ip_at = p->at;
	v = p->family == FAMILY_V4 ? parse_v4(ctx, p) : parse_v6(ctx, p);
	if (v != V_NONE)
		return v;
	if (p->fragment) /* without ports nothing can be decided; who manages may need it */
		return p->protocol != IPPROTO_TCP && is_managed(p) ? V_MANAGEMENT : V_FRAGMENT;
	v = parse_transport(ctx, p);
	if (v == V_PROTOCOL)
		return is_managed(p) ? V_MANAGEMENT : v;
	if (v != V_NONE)
		return v;
	if (p->protocol == IPPROTO_TCP)
		v = admit_tcp(ctx, p, t);
	else if (p->protocol == IPPROTO_UDP)
		v = admit_udp(ctx, p, t);
	else
		v = sort_icmp(p);
	if (v >= V_MALFORMED || v == V_FLOW || v == V_NEIGHBOUR || v == V_MANAGEMENT)
		return v; /* a flow was compared with the deny lists as they are */
	if (is_denied(p) && !is_managed(p))
		return V_DENIED;
	if (v == V_PUBLISHED && !within_rate(p, 0))
		return V_RATE;
	return v == V_COOKIE ? answer(ctx, p) : v;
}

/* ---- 5 account ---- */

/* sample tells user space of a drop. Samples are the dearest part of one: from
 * the first moment of a flood on they become half as many with each 256, and few
 * are tried when nobody takes them. User space resets that four times a second. */
GLOBAL int sample(struct xdp_md *ctx, struct packet *p, int v, __u32 weight)
{
	struct tuning *t = tuned();
	struct drop_event *e;

	if (!p || !t)
		return 0;
	e = bpf_ringbuf_reserve(&drops, sizeof(*e), 0);
	if (!e) {
		t->sample_mask |= 0xffff;
		return 0;
	}
	if ((++t->samples & 255) == 0 && t->sample_mask < 0xffff)
		t->sample_mask = t->sample_mask * 2 + 1;
	e->time = bpf_ktime_get_coarse_ns();
	e->source = p->source;
	e->source_port = p->source_port;
	e->port = p->port;
	e->protocol = p->protocol;
	e->family = p->family;
	e->verdict = v;
	e->pad = 0;
	e->weight = weight;
	e->length = bpf_xdp_get_buff_len(ctx);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

SEC("xdp.frags")
int guard(struct xdp_md *ctx)
{
	struct tuning *t = tuned();
	struct packet p = {};
	__u32 index, v;
	__u64 *n;

	if (!t)
		return XDP_DROP;
	v = judge(ctx, &p, t);
	index = p.family * V_MAX + (v & (V_MAX - 1));
	n = bpf_map_lookup_elem(&counters, &index);
	if (!n)
		return XDP_DROP;
	*n += 1;
	if (v > 0 && v < V_MALFORMED)
		return v == V_COOKIE ? XDP_TX : XDP_PASS;
	if ((*n & t->sample_mask) == 0 && v != V_KNOCK)
		sample(ctx, &p, v, t->sample_mask + 1);
	return XDP_DROP;
}
