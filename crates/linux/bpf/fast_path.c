// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * The fast path of pods' packets to pods of other nodes. `outbound` runs where a
 * pod's packet comes into the node (TCX ingress of the host side of the pod's
 * veth) and sends it out of the device that leads to the other node, which is
 * one of the underlay or a tunnel's; `inbound` runs where it arrives there (TCX
 * ingress of that device) and puts it into the pod; `inbound_ip` does so where
 * packets have no Ethernet header. None passes the node's IP stack, but for what
 * a tunnel sends and receives.
 *
 * Taken are only packets of connections that the stack let through and knows
 * well: there is an entry of conntrack, seen in both directions (ASSURED) and not
 * about to end, whose addresses are not translated. Everything that opens, closes
 * or resets a connection, and everything this program is not sure about, goes to
 * the stack, which decides as if there were no fast path.
 *
 * Built by `cargo xtask bpf` into fast_path.o, which is committed: building
 * podwire needs no compiler for BPF. Loaded by src/fast_path.rs, which knows the
 * layout of the maps' keys and values.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* enum tcx_action_base of linux/bpf.h, newer than the headers one may have */
#define TCX_NEXT (-1)
#define TCX_DROP 2
/* linux/socket.h of the kernel */
#define AF_INET 2
#define AF_INET6 10
/* linux/if_packet.h */
#define PACKET_HOST 0
/* linux/ip.h, include/net/ip.h: more fragments, and the offset */
#define FRAGMENT 0x3fff
/* enum ip_conntrack_status of linux/netfilter/nf_conntrack_common.h */
#define IPS_ASSURED (1 << 2)
#define IPS_CONFIRMED (1 << 3)
#define IPS_SRC_NAT (1 << 4)
#define IPS_DST_NAT (1 << 5)
#define IPS_SEQ_ADJUST (1 << 6)
#define IPS_DYING (1 << 9)
#define IPS_HELPER (1 << 13)
#define IPS_LOOKED_AT                                                          \
	(IPS_ASSURED | IPS_CONFIRMED | IPS_SRC_NAT | IPS_DST_NAT |             \
	 IPS_SEQ_ADJUST | IPS_DYING | IPS_HELPER)

/* enum tcp_conntrack of linux/netfilter/nf_conntrack_tcp.h */
#define TCP_CONNTRACK_ESTABLISHED 3

/* An IPv6 address, or an IPv4 one as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). */
struct address {
	__u32 word[4];
};

/* A pod's interface, by one of its addresses. */
struct pod {
	/* The host side of its veth. */
	__u32 device;
	/* What the header of a frame to the pod starts with. */
	__u8 mac[ETH_ALEN];
	__u8 gateway[ETH_ALEN];
};

struct range_key {
	/* Bits of the address that count. */
	__u32 length;
	struct address address;
};

/* What there is to know besides the device; `Via` of src/fast_path.rs. */
enum kind {
	/* An Ethernet: `to` is the next hop there. */
	NEIGHBOUR,
	/* A tunnel told with each packet its other end on the underlay: `to`. */
	TUNNEL,
	/* An Ethernet the pods' addresses themselves are neighbours on. */
	ON_LINK,
	/* A tunnel without Ethernet headers that finds the other end itself. */
	DEVICE,
};

/* How pods of a peer's range are reached. */
struct range {
	/* What their packets leave by, and theirs come in by. */
	__u32 device;
	/* Longest packet, from its IP header on. */
	__u32 mtu;
	enum kind kind;
	/* AF_INET or AF_INET6, of `to`. */
	__u32 family;
	/* IPv4 in the first word. */
	struct address to;
	/* The tunnel's. */
	__u32 id;
};

/* What became of a packet; `Outcome` of src/fast_path.rs. */
enum outcome {
	TAKEN,
	/* No TCP or UDP directly over IP, a fragment, options, a VLAN. */
	HEADER,
	/* The destination is none of the fast path's. */
	DESTINATION,
	/* Not the source that the interface or the destination asks for. */
	SOURCE,
	HOP_LIMIT,
	/* No established, untranslated connection, or one that opens or ends. */
	CONNECTION,
	/* Longer than the device sends, or the device is gone. */
	LENGTH,
	OUTCOMES,
};

enum direction { OUTBOUND, INBOUND, DIRECTIONS };

/* The loader reads this from section `maps`: union bpf_attr of BPF_MAP_CREATE. */
struct map {
	__u32 type;
	__u32 key_size;
	__u32 value_size;
	__u32 max_entries;
	__u32 map_flags;
};

struct map pods SEC("maps") = {
	.type = BPF_MAP_TYPE_HASH,
	.key_size = sizeof(struct address),
	.value_size = sizeof(struct pod),
	.max_entries = 8192,
	.map_flags = BPF_F_NO_PREALLOC,
};

struct map ranges SEC("maps") = {
	.type = BPF_MAP_TYPE_LPM_TRIE,
	.key_size = sizeof(struct range_key),
	.value_size = sizeof(struct range),
	.max_entries = 65536,
	.map_flags = BPF_F_NO_PREALLOC,
};

struct map counters SEC("maps") = {
	.type = BPF_MAP_TYPE_PERCPU_ARRAY,
	.key_size = sizeof(__u32),
	.value_size = sizeof(__u64),
	.max_entries = DIRECTIONS * OUTCOMES,
};

/*
 * For how long conntrack keeps an established connection that is silent, in
 * milliseconds: of TCP, and of UDP.
 */
enum { TCP_TIMEOUT, UDP_TIMEOUT, TIMEOUTS };
struct map timeouts SEC("maps") = {
	.type = BPF_MAP_TYPE_ARRAY,
	.key_size = sizeof(__u32),
	.value_size = sizeof(__u32),
	.max_entries = TIMEOUTS,
};

/*
 * Constants of the running kernel: the loader puts the number in the place of
 * the symbol's address.
 */
extern const char nf_conn_status_offset, nf_conn_timeout_offset,
	nf_conn_tcp_state_offset, jiffies_per_second;
#define CONSTANT(symbol) ((unsigned long)&(symbol))

/* net/netfilter/nf_conntrack_bpf.c; the first 12 bytes of struct bpf_ct_opts */
struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};
struct nf_conn;
extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb,
					 struct bpf_sock_tuple *tuple,
					 __u32 tuple_size,
					 struct bpf_ct_opts *options,
					 __u32 options_size);
extern int bpf_ct_change_timeout(struct nf_conn *connection, __u32 milliseconds);
extern void bpf_ct_release(struct nf_conn *connection);

struct packet {
	bool v6;
	__u8 protocol;
	__u8 hop_limit;
	/* TCP's FIN, SYN or RST: conntrack has to see it. */
	bool changes;
	/* The longest of the packets it leaves as, from the IP header on. */
	__u32 length;
	struct address source;
	struct address destination;
	/* For conntrack. */
	struct bpf_sock_tuple tuple;
};

static __always_inline void count(enum direction direction, enum outcome outcome)
{
	__u32 key = direction * OUTCOMES + outcome;
	__u64 *counter = bpf_map_lookup_elem(&counters, &key);

	if (counter)
		*counter += 1;
}

static __always_inline int to_stack(enum direction direction, enum outcome why)
{
	count(direction, why);
	return TCX_NEXT;
}

/*
 * The first `length` bytes, moved to where they can be read if they are not. The
 * bounds are read anew each time, so that the verifier finds each check on the
 * pointer that is used.
 */
static __always_inline void *head(struct __sk_buff *skb, __u32 length)
{
	volatile struct __sk_buff *bounds = skb;
	void *data = (void *)(long)bounds->data;

	if (data + length <= (void *)(long)bounds->data_end)
		return data;
	if (bpf_skb_pull_data(skb, length))
		return 0;
	data = (void *)(long)bounds->data;
	return data + length <= (void *)(long)bounds->data_end ? data : 0;
}

/* The start of TCP's and of UDP's header that is read. */
#define PORTS 4
#define UDP_HEADER 8
#define TCP_READ 14
/* Of TCP's byte 12 the length of the header in words, of byte 13 the flags. */
#define TCP_LENGTH(data) ((data)[12] >> 4 << 2)
#define TCP_CHANGES(data) ((data)[13] & 0x07)

/*
 * `begin` is where the IP header is, here and below: an Ethernet header before,
 * or none. `transport` is how far the next one is from there.
 */
static __always_inline bool read_transport(struct __sk_buff *skb, __u32 begin,
					   __u32 transport, struct packet *packet)
{
	__u8 *data;
	__u32 headers;

	if (packet->protocol == IPPROTO_UDP) {
		packet->changes = false;
		headers = transport + UDP_HEADER;
	} else if (packet->protocol == IPPROTO_TCP) {
		data = head(skb, begin + transport + TCP_READ);
		if (!data)
			return false;
		data += begin + transport;
		packet->changes = TCP_CHANGES(data);
		headers = transport + TCP_LENGTH(data);
	} else {
		return false;
	}
	packet->length = skb->gso_size ? headers + skb->gso_size : skb->len - begin;
	return true;
}

static __always_inline bool read_v4(struct __sk_buff *skb, __u32 begin, struct packet *packet)
{
	void *data = head(skb, begin + sizeof(struct iphdr) + PORTS);
	struct iphdr *ip;
	__be16 *ports;

	if (!data)
		return false;
	ip = data + begin;
	ports = (void *)(ip + 1);
	if (ip->version != 4 || ip->ihl != 5 || ip->frag_off & bpf_htons(FRAGMENT))
		return false;
	packet->v6 = false;
	packet->protocol = ip->protocol;
	packet->hop_limit = ip->ttl;
	packet->source.word[2] = bpf_htonl(0xffff);
	packet->source.word[3] = ip->saddr;
	packet->destination.word[2] = bpf_htonl(0xffff);
	packet->destination.word[3] = ip->daddr;
	packet->tuple.ipv4.saddr = ip->saddr;
	packet->tuple.ipv4.daddr = ip->daddr;
	packet->tuple.ipv4.sport = ports[0];
	packet->tuple.ipv4.dport = ports[1];
	return read_transport(skb, begin, sizeof(struct iphdr), packet);
}

static __always_inline bool read_v6(struct __sk_buff *skb, __u32 begin, struct packet *packet)
{
	void *data = head(skb, begin + sizeof(struct ipv6hdr) + PORTS);
	struct ipv6hdr *ip;
	__be16 *ports;

	if (!data)
		return false;
	ip = data + begin;
	ports = (void *)(ip + 1);
	if (ip->version != 6)
		return false;
	packet->v6 = true;
	packet->protocol = ip->nexthdr;
	packet->hop_limit = ip->hop_limit;
	__builtin_memcpy(&packet->source, &ip->saddr, sizeof(packet->source));
	__builtin_memcpy(&packet->destination, &ip->daddr, sizeof(packet->destination));
	__builtin_memcpy(packet->tuple.ipv6.saddr, &ip->saddr, sizeof(ip->saddr));
	__builtin_memcpy(packet->tuple.ipv6.daddr, &ip->daddr, sizeof(ip->daddr));
	packet->tuple.ipv6.sport = ports[0];
	packet->tuple.ipv6.dport = ports[1];
	return read_transport(skb, begin, sizeof(struct ipv6hdr), packet);
}

/* Whether it is TCP or UDP right behind a plain header of IP. */
static __always_inline bool read_packet(struct __sk_buff *skb, __u32 begin,
					struct packet *packet)
{
	if (skb->vlan_present)
		return false;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return read_v4(skb, begin, packet);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return read_v6(skb, begin, packet);
	return false;
}

/*
 * Has conntrack keep the connection from now on for as long as it would from a
 * packet that the stack saw: else one that was busy for a day would be forgotten
 * when it rests for a minute.
 */
static __always_inline void renew(struct nf_conn *connection, __u8 protocol)
{
	__u32 key = protocol == IPPROTO_UDP ? UDP_TIMEOUT : TCP_TIMEOUT;
	__u32 *timeout = bpf_map_lookup_elem(&timeouts, &key);
	/* Jiffies; an entry whose time is up is not found. */
	__u32 left = *(__u32 *)((void *)connection + CONSTANT(nf_conn_timeout_offset)) -
		     (__u32)bpf_jiffies64();

	/* Not with each packet: the processors would fight for the entry. */
	if (timeout && (__u64)left * 1000 / CONSTANT(jiffies_per_second) + 1000 < *timeout)
		bpf_ct_change_timeout(connection, *timeout);
}

/*
 * Whether the stack knows the packet's connection, has seen it in both
 * directions and not its end, and does not translate it.
 */
static __always_inline bool established(struct __sk_buff *skb, struct packet *packet)
{
	struct bpf_ct_opts options = {
		.netns_id = BPF_F_CURRENT_NETNS,
		.l4proto = packet->protocol,
	};
	struct nf_conn *connection;
	unsigned long status;
	__u8 state;
	bool is;

	if (packet->changes)
		return false;
	if (packet->v6)
		connection = bpf_skb_ct_lookup(skb, &packet->tuple,
					       sizeof(packet->tuple.ipv6),
					       &options, sizeof(options));
	else
		connection = bpf_skb_ct_lookup(skb, &packet->tuple,
					       sizeof(packet->tuple.ipv4),
					       &options, sizeof(options));
	if (!connection)
		return false;
	status = *(unsigned long *)((void *)connection + CONSTANT(nf_conn_status_offset));
	state = *(__u8 *)((void *)connection + CONSTANT(nf_conn_tcp_state_offset));
	is = (status & IPS_LOOKED_AT) == (IPS_ASSURED | IPS_CONFIRMED) &&
	     (packet->protocol != IPPROTO_TCP || state == TCP_CONNTRACK_ESTABLISHED);
	if (is)
		renew(connection, packet->protocol);
	bpf_ct_release(connection);
	return is;
}

/* What a router does to a packet it forwards, which has an Ethernet header. */
static __always_inline bool decrement_hop_limit(struct __sk_buff *skb, struct packet *packet)
{
	void *data;
	struct iphdr *ip;
	__u8 hop_limit = packet->hop_limit - 1;
	__u32 sum;

	/* No checksum of the header makes up for it in one of the whole packet. */
	if (packet->v6)
		return !bpf_skb_store_bytes(skb,
					    sizeof(struct ethhdr) +
						    __builtin_offsetof(struct ipv6hdr, hop_limit),
					    &hop_limit, sizeof(hop_limit),
					    BPF_F_RECOMPUTE_CSUM);
	data = head(skb, sizeof(struct ethhdr) + sizeof(struct iphdr));
	if (!data)
		return false;
	ip = data + sizeof(struct ethhdr);
	/* RFC 1624: the word of TTL and protocol has become 0x0100 less. */
	sum = ip->check + bpf_htons(0x0100);
	ip->check = sum + (sum >= 0xffff);
	ip->ttl = hop_limit;
	return true;
}

static __always_inline struct range *range_of(struct address *address)
{
	struct range_key key = { .length = 128, .address = *address };

	return bpf_map_lookup_elem(&ranges, &key);
}

/* Whether a device is there that sends what the packet leaves as. */
static __always_inline bool fits(struct __sk_buff *skb, __u32 device, struct packet *packet)
{
	/* In: take the packet's own length; out: the device's longest. */
	__u32 mtu = 0;

	return bpf_check_mtu(skb, device, &mtu, 0, 0) >= 0 && packet->length <= mtu;
}

static __always_inline bool is_to(struct __sk_buff *skb, __u8 *mac)
{
	__u16 *destination = head(skb, ETH_ALEN), *wanted = (void *)mac;

	return destination && destination[0] == wanted[0] &&
	       destination[1] == wanted[1] && destination[2] == wanted[2];
}

static __always_inline int to_neighbour(struct range *range, struct packet *packet)
{
	struct bpf_redir_neigh next = { .nh_family = range->family };

	if (range->kind == NEIGHBOUR) {
		__builtin_memcpy(next.ipv6_nh, &range->to, sizeof(next.ipv6_nh));
	} else if (packet->v6) {
		next.nh_family = AF_INET6;
		__builtin_memcpy(next.ipv6_nh, &packet->destination, sizeof(next.ipv6_nh));
	} else {
		next.nh_family = AF_INET;
		next.ipv4_nh = packet->destination.word[3];
	}
	return bpf_redirect_neigh(range->device, &next, sizeof(next), 0);
}

/*
 * Gives the packet what a route with a lightweight tunnel gives it, which devices
 * in external mode ask for, and one of ipip without a fixed end takes where it is
 * there (ip_tunnel_xmit of net/ipv4/ip_tunnel.c). The rest of the outer header is
 * the device's business, which takes the inner one's ECN into it, and drops the
 * Ethernet header if it has none. Checksums of UDP are as podwire's routes have
 * them: over IPv6 only, which demands them (RFC 8200, 8.1).
 */
static __always_inline int through_tunnel(struct __sk_buff *skb, struct range *range)
{
	struct bpf_tunnel_key key = { .tunnel_id = range->id };
	__u64 flags;

	if (range->family == AF_INET6) {
		__builtin_memcpy(key.remote_ipv6, &range->to, sizeof(key.remote_ipv6));
		flags = BPF_F_TUNINFO_IPV6;
	} else {
		key.remote_ipv4 = bpf_ntohl(range->to.word[0]);
		flags = BPF_F_ZERO_CSUM_TX;
	}
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags))
		return TCX_DROP;
	return bpf_redirect(range->device, 0);
}

SEC("tcx/outbound")
int outbound(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct range *range;
	struct pod *pod;

	if (!read_packet(skb, sizeof(struct ethhdr), &packet))
		return to_stack(OUTBOUND, HEADER);
	range = range_of(&packet.destination);
	if (!range)
		return to_stack(OUTBOUND, DESTINATION);
	pod = bpf_map_lookup_elem(&pods, &packet.source);
	if (!pod || pod->device != skb->ifindex || !is_to(skb, pod->gateway))
		return to_stack(OUTBOUND, SOURCE);
	if (packet.hop_limit <= 1)
		return to_stack(OUTBOUND, HOP_LIMIT);
	if (!established(skb, &packet))
		return to_stack(OUTBOUND, CONNECTION);
	if (packet.length > range->mtu || !fits(skb, range->device, &packet))
		return to_stack(OUTBOUND, LENGTH);
	if (!decrement_hop_limit(skb, &packet))
		return to_stack(OUTBOUND, HEADER);
	count(OUTBOUND, TAKEN);
	if (range->kind == TUNNEL)
		return through_tunnel(skb, range);
	/* It drops the Ethernet header. */
	if (range->kind == DEVICE)
		return bpf_redirect(range->device, 0);
	return to_neighbour(range, &packet);
}

static __always_inline int receive(struct __sk_buff *skb, __u32 begin)
{
	struct packet packet = {};
	struct range *range;
	struct pod *pod;
	__be16 protocol = skb->protocol;

	if (skb->pkt_type != PACKET_HOST || !read_packet(skb, begin, &packet))
		return to_stack(INBOUND, HEADER);
	pod = bpf_map_lookup_elem(&pods, &packet.destination);
	if (!pod)
		return to_stack(INBOUND, DESTINATION);
	/* It came in by the device by which its sender is reached. */
	range = range_of(&packet.source);
	if (!range || range->device != skb->ifindex)
		return to_stack(INBOUND, SOURCE);
	if (packet.hop_limit <= 1)
		return to_stack(INBOUND, HOP_LIMIT);
	if (!established(skb, &packet))
		return to_stack(INBOUND, CONNECTION);
	if (!fits(skb, pod->device, &packet))
		return to_stack(INBOUND, LENGTH);
	if (!begin && (bpf_skb_change_head(skb, sizeof(struct ethhdr), 0) ||
		       bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &protocol, sizeof(protocol), 0)))
		return to_stack(INBOUND, HEADER);
	if (!decrement_hop_limit(skb, &packet) ||
	    bpf_skb_store_bytes(skb, 0, pod->mac, 2 * ETH_ALEN, 0))
		return to_stack(INBOUND, HEADER);
	count(INBOUND, TAKEN);
	return bpf_redirect_peer(pod->device, 0);
}

SEC("tcx/inbound")
int inbound(struct __sk_buff *skb)
{
	return receive(skb, sizeof(struct ethhdr));
}

SEC("tcx/inbound_ip")
int inbound_ip(struct __sk_buff *skb)
{
	return receive(skb, 0);
}

/* Functions of conntrack are for programs under a licence that GPL admits. */
const char program_license[] SEC("license") = "Dual BSD/GPL";

/* The SHA-256 of this file: a test compares them. */
const char source_digest[] SEC("digest") = DIGEST;
