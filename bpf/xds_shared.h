/* xds_shared.h: the contract between the XDP program (xds_rx.bpf.c) and user space.
 *
 * Both sides compile this file, and cffi reads it (stripped of preprocessor lines, see
 * cffi_build/build.py), so it holds only fixed-width fields, enums and integer #defines: no
 * pointers, no #if around a field. The includer provides uint8_t ... uint64_t.
 *
 * What changes together: this file, xds_rx.bpf.c, xdpstack/rules.py (which fills struct
 * xds_tables) and whoever reads struct xds_rx_meta in front of a received frame.
 */
#ifndef XDS_SHARED_H
#define XDS_SHARED_H

/* ---- Receive metadata ---------------------------------------------------------------------- */

/* The 16 bytes before the Ethernet header of a frame that came by an AF_XDP socket. The reader
 * checks `magic`, and clears it before it gives the frame back: a driver reuses the memory, and a
 * frame that came without metadata must not show the stamp of the one before. */
struct xds_rx_meta {
    uint64_t rx_ns;  /* ns: CLOCK_TAI at the XDP hook, or the NIC's own clock with XDS_META_NIC */
    uint32_t length; /* bytes of the whole frame: the second check that this belongs to it      */
    uint16_t rule;   /* id of the rule that redirected it                                       */
    uint8_t flags;   /* enum xds_meta_flag                                                      */
    uint8_t magic;   /* XDS_META_MAGIC                                                          */
};

#define XDS_META_MAGIC 0xd5
#define XDS_META_LEN   16

/* What is known of a frame; the numbers are those of enum xds_frame_flag. */
enum xds_meta_flag {
    XDS_META_NIC = 1,    /* rx_ns was given by the driver: the NIC's clock, not yet mapped to TAI */
    XDS_META_HASH = 16,  /* struct xds_rx_hints lies before this, with a hash                     */
    XDS_META_VLAN = 32,  /* ... with the tag that the NIC took off                                */
    XDS_META_MOVED = 64, /* the frame begins XDS_MOVED bytes later, and `length` counts them too  */
};

/* Where a reader's chunks lie in a row (XDS_XSK_IN_A_ROW), what is written before a frame goes over the last bytes
 * of the chunk before it. No frame may end in those: one that would is given so many bytes in front. */
#define XDS_MOVED 64 /* more than metadata and hints */

/* What the driver told of a frame, before its struct xds_rx_meta: XDS_META_HASH and XDS_META_VLAN say
 * which of it is there. Only a program that is bound to its device can ask. */
struct xds_rx_hints {
    uint32_t hash;
    uint32_t hash_type; /* over which headers: the kernel's enum xdp_rss_hash_type */
    uint16_t vlan_tci;  /* priority and VLAN id, host byte order                   */
    uint16_t vlan_tpid; /* 0x8100 or 0x88a8, host byte order                       */
    uint32_t pad;
};

#define XDS_HINTS_LEN 16

/* Chosen before the program is loaded; what is switched off is not even in the machine code. */
struct xds_settings {
    uint32_t stamp; /* 0: redirect without metadata, saves a clock reading */
    uint32_t ask;   /* enum xds_meta_flag, or-ed: what xds_rx_meta asks the driver for */
    uint32_t room;  /* always 0: guards instructions that only make xds_rx_meta large when it is loaded */
    uint32_t row; /* bytes of a frame in each chunk of readers whose chunks lie in a row; 0: there are none */
};

/* ---- Bounds -------------------------------------------------------------------------------- */

#define XDS_RULES_MAX   1024 /* rules in force at once                                   */
#define XDS_RULE_IDS    4096 /* ids 1..4095; an id keeps its counters for its rule's life */
#define XDS_WORDS_MAX   16   /* 64-bit words in a set of rules: XDS_RULES_MAX / 64        */
#define XDS_GROUPS_MAX  32   /* socket groups                                            */
#define XDS_QUEUES_MAX  128  /* receive queues of an interface                           */
#define XDS_SOCKETS_MAX 4096 /* XSKMAP entries: index = group * XDS_QUEUES_MAX + queue    */
/* Distinct sets of rules over all dimensions: 1,024 rules make at most 2,049 for each address and port,
 * 1,026 for each of the others. */
#define XDS_CLASSES_MAX    12288
#define XDS_CLASS_WORDS    196608 /* XDS_CLASSES_MAX * XDS_WORDS_MAX                          */
#define XDS_BUCKETS_MAX    2048   /* buckets of a host hash                                   */
#define XDS_BUCKET_SLOTS   4
#define XDS_RANGES_MAX     4096 /* starts of a prefix table; 1,024 prefixes need at most 2,049 */
#define XDS_FLOW_BUCKETS   1024 /* of XDS_FLOW_SLOTS flows that one look decides            */
#define XDS_FLOW_SLOTS     2
#define XDS_EXTENSIONS_MAX 6      /* IPv6 extension headers that are walked                   */
#define XDS_NOTES_LEN      393216 /* bytes of the rules' text, 384 a rule                     */

/* ---- Counters ------------------------------------------------------------------------------ */

/* How a packet left the program. Each packet counts exactly one of them. */
enum xds_reason {
    XDS_REASON_REDIRECTED = 0,      /* to a socket, stamped (or stamps are switched off)      */
    XDS_REASON_REDIRECTED_BARE = 1, /* to a socket without a stamp: the driver has no room for
                                     * metadata, or a dispatcher is between                   */
    XDS_REASON_PASSED = 2,          /* a rule says pass                                       */
    XDS_REASON_DROPPED = 3,         /* a rule says drop                                       */
    XDS_REASON_UNMATCHED = 4,       /* no rule names it: to the kernel                        */
    XDS_REASON_NO_SOCKET = 5,       /* redirect, but the group has no socket on this queue: to
                                     * the kernel, counted by queue in xds_nosock too         */
    XDS_REASON_QUEUE_RANGE = 6,     /* redirect, but the queue is XDS_QUEUES_MAX or more      */
    XDS_REASON_MALFORMED = 7,       /* cut, or a header field that contradicts itself         */
    XDS_REASON_EXTENSIONS = 8,      /* more than XDS_EXTENSIONS_MAX IPv6 extension headers    */
    XDS_REASON_NO_TABLES = 9,       /* no rules were published yet                            */
    XDS_REASONS = 10,
};

struct xds_count {
    uint64_t packets;
    uint64_t bytes; /* of whole frames, Ethernet header included */
};

struct xds_reason_counts { /* the value of xds_reasons, one copy a CPU */
    struct xds_count by_reason[XDS_REASONS];
};

/* ---- What was refused, for who asks ---------------------------------------------------------- */

/* The one value of map xds_tap. While until_ns lies ahead, refused frames go to the perf buffers of map
 * xds_dropped; the reader puts it off again and again, so that a reader that died switches it off. */
struct xds_tap {
    uint64_t until_ns; /* CLOCK_TAI; 0: off, which costs one load a refused frame */
    uint32_t every;    /* show one in so many, by chance; 0 and 1: all            */
    uint32_t pid;      /* of the reader                                           */
};

/* Before the frame's first bytes, XDS_DROP_BYTES of them at most. */
struct xds_drop {
    uint64_t ns;     /* CLOCK_TAI at the hook            */
    uint32_t length; /* of the whole frame               */
    uint32_t queue;  /* receive queue                    */
    uint16_t rule;   /* id of the rule that said so, 0   */
    uint8_t reason;  /* enum xds_reason                  */
    uint8_t pad[5];
};

#define XDS_DROP_BYTES 2048

/* ---- Tables -------------------------------------------------------------------------------- */

/* Aggregated bit vectors. Each dimension turns a field into a class; a class is the set of rules
 * that this value of the field allows, one bit a rule in the order of the rules. The AND over the
 * dimensions is the set of rules that match, its lowest bit the first of them. Summaries (bit w:
 * word w is not empty) skip empty words, and dimensions that no rule uses are not looked at. So
 * the cost is that of the lookups, not of the rules.
 *
 * A whole struct xds_tables is the value of one inner map; publishing it is one write to the outer
 * map, so that a packet sees the old rules or the new ones, never a mixture. */

enum xds_dim {
    XDS_DIM_KIND = 0,
    XDS_DIM_VLAN = 1,
    XDS_DIM_VLAN2 = 2,
    XDS_DIM_SRC = 3,
    XDS_DIM_DST = 4,
    XDS_DIM_SPORT = 5,
    XDS_DIM_DPORT = 6,
    XDS_DIMS = 7,
};

/* What a frame is: the value of XDS_DIM_KIND. */
#define XDS_KIND_IP4    0    /* + protocol                                               */
#define XDS_KIND_IP6    256  /* + protocol behind the extension headers                  */
#define XDS_KIND_INNER4 512  /* + protocol: the IPv4 packet inside an ICMP error         */
#define XDS_KIND_INNER6 768  /* + protocol: the IPv6 packet inside an ICMPv6 error       */
#define XDS_KIND_ARP    1024 /* source and destination: sender and target address        */
#define XDS_KIND_NDP    1025 /* solicitation or advertisement; destination: its target   */
#define XDS_KIND_OTHER  1026 /* any other Ethernet frame                                 */
#define XDS_KINDS       1027

#define XDS_VLAN_NONE 4096 /* the class of frames without that tag                     */
#define XDS_VLANS     4097
#define XDS_PORT_NONE 65536 /* the class of packets without ports, and of every fragment */
#define XDS_PORTS     65537

enum xds_action {
    XDS_ACTION_PASS = 0,
    XDS_ACTION_DROP = 1,
    XDS_ACTION_REDIRECT = 2,
    XDS_ACTION_COUNT = 3, /* does not end: the next rule that matches decides */
};

enum xds_tables_flag {
    XDS_TABLES_INNER = 1, /* some rule looks inside ICMP errors, or at NDP targets */
};

struct xds_rule_entry {
    uint16_t id;
    uint8_t action; /* enum xds_action                           */
    uint8_t group;  /* of XDS_ACTION_REDIRECT, < XDS_GROUPS_MAX  */
};

/* Single hosts: one multiplication, one bucket. The builder picks a multiplier with which no bucket
 * overflows. An address that is not here is looked for in the ranges. */
struct xds_bucket4 {
    uint32_t address[XDS_BUCKET_SLOTS];  /* host byte order                          */
    uint16_t class_id[XDS_BUCKET_SLOTS]; /* 0: the slot is empty                    */
    uint64_t pad;
};

struct xds_bucket6 {
    uint64_t high[XDS_BUCKET_SLOTS]; /* host byte order */
    uint64_t low[XDS_BUCKET_SLOTS];
    uint16_t class_id[XDS_BUCKET_SLOTS];
    uint64_t pad;
};

/* Prefixes as sorted starts of address ranges; binary search from `top` (a power of two), 0 when
 * there are none: class_id[0] then holds for every address. */
struct xds_addresses4 {
    uint64_t multiplier;
    uint32_t mask;  /* buckets - 1                        */
    uint32_t hosts; /* 0: skip the hash                   */
    uint32_t top;
    uint32_t pad;
    struct xds_bucket4 buckets[XDS_BUCKETS_MAX];
    uint32_t start[XDS_RANGES_MAX]; /* the rest: 0xffffffff, and the last class repeated */
    uint16_t class_id[XDS_RANGES_MAX];
};

struct xds_addresses6 {
    uint64_t multiplier;
    uint32_t mask;
    uint32_t hosts;
    uint32_t top;
    uint32_t pad;
    struct xds_bucket6 buckets[XDS_BUCKETS_MAX];
    uint64_t start_high[XDS_RANGES_MAX];
    uint64_t start_low[XDS_RANGES_MAX];
    uint16_t class_id[XDS_RANGES_MAX];
};

/* A flow that one look decides: IPv4 packets to one address and port whose rule hangs on nothing else.
 * What is not here is looked for in the dimensions. */
struct xds_flow {
    uint32_t dst; /* host byte order                  */
    uint16_t dport;
    uint8_t protocol; /* 0: the slot is empty             */
    uint8_t pad;
    struct xds_rule_entry rule;
    uint32_t pad2;
};

#define XDS_FLOW_MULTIPLIER 0x9e3779b97f4a7c15ull
#define XDS_FLOW_HASH(dst, dport, protocol)                                                                  \
    (((((uint64_t)(dst) << 24) ^ ((uint64_t)(dport) << 8) ^ (protocol)) * XDS_FLOW_MULTIPLIER) >> 48)

struct xds_tables {
    uint32_t used;          /* bit d: some rule uses dimension d                        */
    uint32_t words;         /* words in a class: 1 for up to 64 rules, else up to 16    */
    uint32_t flags;         /* enum xds_tables_flag                                     */
    uint32_t rules;         /* how many                                                 */
    uint64_t valid;         /* words == 1: the rules there are                        */
    uint64_t counting;      /* words == 1: those whose action is count                */
    uint16_t no_address[2]; /* class of frames without IP addresses: source, destination */
    uint16_t pad[2];
    uint32_t notes_len;    /* bytes used of notes                                   */
    uint32_t counting_any; /* some rule's action is count                        */
    uint32_t flow_mask;    /* buckets - 1                                        */
    uint32_t flows;        /* how many there are                                 */
    struct xds_flow flow[XDS_FLOW_BUCKETS][XDS_FLOW_SLOTS];
    struct xds_rule_entry rule[XDS_RULES_MAX];
    uint16_t kind[XDS_KINDS];
    uint16_t vlan[XDS_VLANS];
    uint16_t vlan2[XDS_VLANS];
    uint16_t sport[XDS_PORTS];
    uint16_t dport[XDS_PORTS];
    uint16_t pad2;
    struct xds_addresses4 src4;
    struct xds_addresses4 dst4;
    struct xds_addresses6 src6;
    struct xds_addresses6 dst6;
    uint32_t summary[XDS_CLASSES_MAX]; /* bit w: word w of the class is not empty  */
    uint64_t word[XDS_CLASS_WORDS];    /* class c: words c * words ...             */
    uint8_t notes[XDS_NOTES_LEN];      /* user space only: the rules' text, the groups' names */
};

_Static_assert(sizeof(struct xds_rx_meta) == XDS_META_LEN, "metadata is 16 bytes on both sides");
_Static_assert(sizeof(struct xds_rx_hints) == XDS_HINTS_LEN, "hints keep the metadata aligned");
_Static_assert(sizeof(struct xds_drop) == 24, "a record's head has no padding of the compiler's");
_Static_assert(sizeof(struct xds_rule_entry) == 4, "rule entries have no padding");
_Static_assert(sizeof(struct xds_flow) == 16, "a bucket of flows is half a cache line");
_Static_assert(sizeof(struct xds_bucket4) == 32, "an IPv4 bucket is half a cache line");
_Static_assert(sizeof(struct xds_bucket6) == 80, "no hidden padding");
_Static_assert(XDS_SOCKETS_MAX == XDS_GROUPS_MAX * XDS_QUEUES_MAX, "one entry a group and queue");
_Static_assert(XDS_CLASS_WORDS == XDS_CLASSES_MAX * XDS_WORDS_MAX, "room for every class");

#endif
