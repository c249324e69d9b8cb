/* pcap.c: captures as a link. Written for draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.
 *
 * Bytes stream through two windows. Records are parsed where they lie; when the rest of a window is
 * too short for the next record, that rest moves to the head of the other window and reading goes on
 * there, so leased frames stay where they are. Before a window is used again its lease must be over:
 * until then rx gives no more.
 *
 * Parsing is total: any bytes give frames, then one sticky answer: -EPIPE (the end; a record cut
 * short was counted), XDS_EMALFORMED, or -errno. At most one frame is parsed ahead (`next`).
 */
#include "ports/link_ops.h"
#include "ports/pcap_io.h"

#include <errno.h>
#include <string.h>

#define WINDOW_MIN 4096u
#define WINDOW_MAX (64u << 20)
#define MTU        65535u
#define NS         1000000000
#define BLOCKED    (-EAGAIN) /* no more before release */

enum block {
    BLOCK_SHB = 0x0a0d0d0a,
    BLOCK_IDB = 1,
    BLOCK_PACKET = 2, /* obsolete, still found in old files */
    BLOCK_SPB = 3,
    BLOCK_EPB = 6,
};

enum option { OPT_COMMENT = 1, OPT_IF_NAME = 2, OPT_IF_TSRESOL = 9, OPT_IF_TSOFFSET = 14 };

struct interface {
    struct xds_pcap_interface shown;
    int64_t offset_s;
    uint8_t tsresol; /* as in if_tsresol: power of ten, or of two with the high bit */
};

struct pcap {
    struct xds_link link;
    struct xdsi_source source;
    struct xds_pcap_info info;
    uint8_t *window[2];
    size_t window_bytes;
    size_t at, end; /* unread bytes of the current window         */
    uint64_t skip;  /* bytes of an unknown block still to pass    */
    unsigned current;
    unsigned next_window; /* where `next` lies                          */
    bool leased[2];
    bool input_ended;
    bool ready; /* `next` holds a frame                       */
    bool swapped, all_types, nanoseconds;
    unsigned section_first; /* interface number of the section's first    */
    struct xds_frame next;
    int64_t last_ns;
    struct interface interfaces[XDS_PCAP_INTERFACES_MAX];
};

static size_t up(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

size_t xds_pcap_size(const struct xds_pcap_config *cfg)
{
    if (cfg->window < WINDOW_MIN || cfg->window > WINDOW_MAX || (cfg->flags & ~(uint32_t)XDS_PCAP_ALL_TYPES))
        return 0;
    return up(sizeof(struct pcap)) + 2 * up(cfg->window) + XDSI_IO_CHUNK;
}

static uint16_t u16(const struct pcap *p, const uint8_t *b)
{
    uint16_t v;
    memcpy(&v, b, sizeof(v));
    return p->swapped ? __builtin_bswap16(v) : v;
}

static uint32_t u32(const struct pcap *p, const uint8_t *b)
{
    uint32_t v;
    memcpy(&v, b, sizeof(v));
    return p->swapped ? __builtin_bswap32(v) : v;
}

static uint64_t u64(const struct pcap *p, const uint8_t *b)
{
    uint64_t v;
    memcpy(&v, b, sizeof(v));
    return p->swapped ? __builtin_bswap64(v) : v;
}

static const uint8_t *here(const struct pcap *p)
{
    return p->window[p->current] + p->at;
}

/* n bytes in one piece at here(). Returns 1, 0 the input ends before, BLOCKED, XDS_EMALFORMED, -errno. */
static int need(struct pcap *p, size_t n)
{
    if (XDSI_LIKELY(p->end - p->at >= n))
        return 1;
    if (n > p->window_bytes)
        return XDS_EMALFORMED;
    if (p->at + n > p->window_bytes) {
        unsigned other = 1 - p->current;
        if (p->leased[other])
            return BLOCKED;
        memcpy(p->window[other], here(p), p->end - p->at);
        p->current = other;
        p->end -= p->at;
        p->at = 0;
    }
    while (p->end - p->at < n && !p->input_ended) {
        int64_t got = xdsi_source_read(&p->source, p->window[p->current] + p->end, p->window_bytes - p->end);
        if (got < 0)
            return (int)got;
        p->input_ended = got == 0;
        p->end += (size_t)got;
    }
    return p->end - p->at >= n;
}

/* The input ended before a record did, or between two. */
static int ended(struct pcap *p)
{
    if (p->end != p->at || p->skip || p->source.cut)
        p->link.stats.rx_truncated++;
    p->at = p->end;
    return -EPIPE;
}

static int64_t clamp(__int128 ns)
{
    if (ns >= XDS_NEVER)
        return XDS_NEVER - 1;
    return ns < 0 ? 0 : (int64_t)ns;
}

/* The frame that a record holds. Returns 1 it is ready, 0 it is of a link type not asked for. */
static int present(struct pcap *p, unsigned interface, int64_t ns, const uint8_t *data, uint32_t len,
                   uint32_t orig)
{
    struct interface *i = &p->interfaces[interface];

    i->shown.frames++;
    p->last_ns = ns;
    if (!p->all_types && i->shown.linktype != XDS_LINKTYPE_ETHERNET) {
        p->link.stats.rx_dropped++;
        return 0;
    }
    p->next = (struct xds_frame){
        .data = (uint8_t *)(uintptr_t)data,
        .rx_ns = ns,
        .addr = p->info.blocks,
        .len = len,
        .queue = (uint16_t)interface,
        .flags = len < orig ? XDS_FRAME_CUT : 0,
    };
    p->next_window = p->current;
    p->ready = true;
    return 1;
}

/* ---- pcap ------------------------------------------------------------------------------------- */

#define PCAP_HEADER 24u
#define PCAP_RECORD 16u
#define MAGIC_US    0xa1b2c3d4u
#define MAGIC_NS    0xa1b23c4du

static int pcap_begin(struct pcap *p)
{
    uint32_t magic;

    int r = need(p, PCAP_HEADER);
    if (r <= 0)
        return r < 0 ? r : XDS_ETRUNC;
    const uint8_t *b = here(p);
    memcpy(&magic, b, sizeof(magic));
    p->swapped = magic == __builtin_bswap32(MAGIC_US) || magic == __builtin_bswap32(MAGIC_NS);
    p->nanoseconds = u32(p, b) == MAGIC_NS;
    p->info.format = XDS_PCAP_FORMAT_PCAP;
    p->info.sections = p->info.interfaces = 1;
    p->interfaces[0].shown.snaplen = u32(p, b + 16);
    p->interfaces[0].shown.linktype = u32(p, b + 20) & 0xffff; /* above: FCS length */
    p->at += PCAP_HEADER;
    return 0;
}

static int pcap_step(struct pcap *p)
{
    int r = need(p, PCAP_RECORD);
    if (r <= 0)
        return r < 0 ? r : ended(p);
    uint32_t len = u32(p, here(p) + 8), orig = u32(p, here(p) + 12);
    if (len > p->window_bytes - PCAP_RECORD)
        return XDS_EMALFORMED;
    r = need(p, PCAP_RECORD + len);
    if (r <= 0)
        return r < 0 ? r : ended(p);
    const uint8_t *b = here(p);
    int64_t ns = (int64_t)u32(p, b) * NS + (int64_t)u32(p, b + 4) * (p->nanoseconds ? 1 : 1000);
    p->info.blocks++;
    r = present(p, 0, ns, b + PCAP_RECORD, len, orig);
    p->at += PCAP_RECORD + len;
    return r;
}

/* ---- pcapng ----------------------------------------------------------------------------------- */

#define BLOCK_MIN      12u
#define ORDER_MAGIC    0x1a2b3c4du
#define TSRESOL_MICRO  6
#define CLOCK_TAI_TEXT "CLOCK_TAI"

/* The next option in [*at, end), moving *at behind it. Returns its code, 0 when there is none. */
static unsigned next_option(const struct pcap *p, const uint8_t **at, const uint8_t *end,
                            const uint8_t **value, unsigned *len)
{
    if (end - *at < 4)
        return 0;
    unsigned code = u16(p, *at);
    *len = u16(p, *at + 2);
    *value = *at + 4;
    if ((size_t)(end - *value) < *len)
        return 0;
    size_t step = 4 + ((*len + 3u) & ~3u);
    *at = (size_t)(end - *at) < step ? end : *at + step;
    return code;
}

static int section(struct pcap *p, const uint8_t *b, uint32_t len)
{
    const uint8_t *at = b + 24, *end = b + len - 4, *value;
    unsigned code, n;

    if (len < 28 || u16(p, b + 12) != 1) /* major version */
        return XDS_EMALFORMED;
    p->info.sections++;
    p->section_first = p->info.interfaces;
    p->info.clock = XDS_PCAP_CLOCK_UTC;
    while ((code = next_option(p, &at, end, &value, &n)))
        if (code == OPT_COMMENT && n >= sizeof(CLOCK_TAI_TEXT) - 1 &&
            memcmp(value, CLOCK_TAI_TEXT, sizeof(CLOCK_TAI_TEXT) - 1) == 0)
            p->info.clock = XDS_PCAP_CLOCK_TAI;
    return 0;
}

static int describe(struct pcap *p, const uint8_t *b, uint32_t len)
{
    const uint8_t *at = b + 16, *end = b + len - 4, *value;
    unsigned code, n;

    if (len < 20)
        return XDS_EMALFORMED;
    if (p->info.interfaces == XDS_PCAP_INTERFACES_MAX)
        return XDS_ECAPACITY;
    struct interface *i = &p->interfaces[p->info.interfaces++];
    *i = (struct interface){.tsresol = TSRESOL_MICRO};
    i->shown.linktype = u16(p, b + 8);
    i->shown.snaplen = u32(p, b + 12);
    while ((code = next_option(p, &at, end, &value, &n))) {
        if (code == OPT_IF_NAME) {
            unsigned keep = n < sizeof(i->shown.name) - 1 ? n : sizeof(i->shown.name) - 1;
            memcpy(i->shown.name, value, keep);
        } else if (code == OPT_IF_TSRESOL && n >= 1) {
            i->tsresol = value[0];
        } else if (code == OPT_IF_TSOFFSET && n >= 8) {
            i->offset_s = (int64_t)u64(p, value);
        }
    }
    return 0;
}

static int64_t stamp(const struct pcap *p, const struct interface *i, uint64_t ticks)
{
    int64_t offset = p->info.clock == XDS_PCAP_CLOCK_TAI ? 0 : i->offset_s; /* TAI: as recorded */
    unsigned power = i->tsresol & 0x7f;
    __int128 ns;

    if (XDSI_LIKELY(i->tsresol == 9)) {
        ns = ticks;
    } else if (i->tsresol & 0x80) { /* 2^-power seconds */
        uint64_t below = power < 64 ? ticks & ((1ull << power) - 1) : ticks;
        __int128 whole = power < 64 ? ticks >> power : 0;
        ns = whole * NS + (power < 100 ? (((unsigned __int128)below * NS) >> power) : 0);
    } else {
        ns = ticks;
        for (unsigned n = power; n < 9; n++)
            ns *= 10;
        for (unsigned n = 9; n < power && ns; n++)
            ns /= 10;
    }
    return clamp(ns + (__int128)offset * NS);
}

static int packet(struct pcap *p, const uint8_t *b, uint32_t len, unsigned number)
{
    if (len < 32)
        return XDS_EMALFORMED;
    uint32_t captured = u32(p, b + 20), orig = u32(p, b + 24);
    unsigned interface = p->section_first + number;
    if (number >= p->info.interfaces - p->section_first || captured > len - 32)
        return XDS_EMALFORMED;
    uint64_t ticks = (uint64_t)u32(p, b + 12) << 32 | u32(p, b + 16);
    return present(p, interface, stamp(p, &p->interfaces[interface], ticks), b + 28, captured, orig);
}

/* A packet without a stamp and of the section's first interface: it gets the stamp of the last one. */
static int simple_packet(struct pcap *p, const uint8_t *b, uint32_t len)
{
    if (len < 16 || p->info.interfaces == p->section_first)
        return XDS_EMALFORMED;
    uint32_t orig = u32(p, b + 8), captured = orig, snaplen = p->interfaces[p->section_first].shown.snaplen;
    if (snaplen && captured > snaplen)
        captured = snaplen;
    if (captured > len - 16)
        return XDS_EMALFORMED;
    return present(p, p->section_first, p->last_ns, b + 12, captured, orig);
}

static int block(struct pcap *p, const uint8_t *b, uint32_t type, uint32_t len)
{
    switch (type) {
    case BLOCK_SHB:
        return section(p, b, len);
    case BLOCK_IDB:
        return describe(p, b, len);
    case BLOCK_EPB:
        return packet(p, b, len, u32(p, b + 8));
    case BLOCK_PACKET:
        return packet(p, b, len, u16(p, b + 8));
    case BLOCK_SPB:
        return simple_packet(p, b, len);
    default:
        p->info.blocks_skipped++;
        return 0;
    }
}

static bool known(uint32_t type)
{
    return type == BLOCK_SHB || type == BLOCK_IDB || type == BLOCK_EPB || type == BLOCK_PACKET ||
           type == BLOCK_SPB;
}

/* Pass the rest of an unknown block that is larger than a window. */
static int pass(struct pcap *p)
{
    while (p->skip) {
        int r = need(p, 1);
        if (r <= 0)
            return r < 0 ? r : ended(p);
        size_t held = p->end - p->at, n = held < p->skip ? held : (size_t)p->skip;
        p->at += n;
        p->skip -= n;
    }
    return 0;
}

static int pcapng_step(struct pcap *p)
{
    int r = pass(p);
    if (r < 0)
        return r;
    r = need(p, BLOCK_MIN);
    if (r <= 0)
        return r < 0 ? r : ended(p);
    uint32_t type = u32(p, here(p)), order;
    if (type == BLOCK_SHB) { /* a palindrome: the byte order comes behind it */
        memcpy(&order, here(p) + 8, sizeof(order));
        if (order != ORDER_MAGIC && order != __builtin_bswap32(ORDER_MAGIC))
            return XDS_EMALFORMED;
        p->swapped = order != ORDER_MAGIC;
    }
    uint32_t len = u32(p, here(p) + 4);
    if (len < BLOCK_MIN || len % 4)
        return XDS_EMALFORMED;
    if (len > p->window_bytes) {
        if (known(type))
            return XDS_EMALFORMED;
        p->skip = len;
        p->info.blocks++;
        p->info.blocks_skipped++;
        return 0;
    }
    r = need(p, len);
    if (r <= 0)
        return r < 0 ? r : ended(p);
    const uint8_t *b = here(p);
    if (u32(p, b + len - 4) != len)
        return XDS_EMALFORMED;
    p->info.blocks++;
    r = block(p, b, type, len);
    p->at += len;
    return r;
}

/* ---- the link --------------------------------------------------------------------------------- */

/* Make `next` ready. Returns 1, or the reason why there is none. */
static int advance(struct pcap *p)
{
    while (!p->ready) {
        if (p->info.ended)
            return p->info.ended;
        int r = p->info.format == XDS_PCAP_FORMAT_PCAP ? pcap_step(p) : pcapng_step(p);
        if (r == BLOCKED)
            return r;
        if (r < 0)
            p->info.ended = r;
    }
    return 1;
}

static int pcap_rx(struct xds_link *l, struct xds_frame *out, unsigned cap, int64_t now_ns)
{
    struct pcap *p = (struct pcap *)l;
    unsigned n = 0;
    int r = 0;

    l->stats.rx_polls++;
    while (n < cap && (r = advance(p)) > 0 && p->next.rx_ns <= now_ns) {
        out[n++] = p->next;
        p->ready = false;
        p->leased[p->next_window] = true;
        l->stats.rx_bytes += p->next.len;
    }
    l->stats.rx_frames += n;
    l->stats.rx_polls_empty += n == 0;
    return n == 0 && r < 0 && r != BLOCKED ? r : (int)n;
}

static void pcap_release(struct xds_link *l)
{
    struct pcap *p = (struct pcap *)l;
    p->leased[0] = p->leased[1] = false;
}

static int64_t pcap_deadline(struct xds_link *l)
{
    struct pcap *p = (struct pcap *)l;
    int r = advance(p);

    if (r > 0)
        return p->next.rx_ns;
    return r == BLOCKED ? p->last_ns : XDS_NEVER; /* blocked: due, as soon as the lease is over */
}

/* What is sent into a capture goes nowhere: there is never a frame to fill. */
static int pcap_reserve(struct xds_link *l, struct xds_frame *out, unsigned n)
{
    l->stats.tx_no_frame += n;
    return 0;
}

static int pcap_commit(struct xds_link *l, const struct xds_frame *frames, unsigned n)
{
    return n ? XDS_ESTATE : 0;
}

static int pcap_flush(struct xds_link *l, int64_t now_ns)
{
    return 0;
}

static void pcap_stats(struct xds_link *l, struct xds_link_stats *out) {}

static void pcap_close(struct xds_link *l)
{
    struct pcap *p = (struct pcap *)l;
    xdsi_source_close(&p->source);
    p->info.ended = -EBADF;
}

static const struct xdsi_link_ops pcap_ops = {
    .rx = pcap_rx,
    .release = pcap_release,
    .reserve = pcap_reserve,
    .commit = pcap_commit,
    .flush = pcap_flush,
    .deadline = pcap_deadline,
    .stats = pcap_stats,
    .close = pcap_close,
};

static int begin(struct pcap *p)
{
    uint32_t magic, swapped;

    int r = need(p, 4);
    if (r <= 0)
        return r < 0 ? r : XDS_ETRUNC;
    memcpy(&magic, here(p), sizeof(magic));
    swapped = __builtin_bswap32(magic);
    if (magic == MAGIC_US || magic == MAGIC_NS || swapped == MAGIC_US || swapped == MAGIC_NS)
        return pcap_begin(p);
    if (magic != BLOCK_SHB)
        return XDS_EMALFORMED;
    p->info.format = XDS_PCAP_FORMAT_PCAPNG;
    r = pcapng_step(p);
    return r == -EPIPE ? XDS_ETRUNC : r;
}

int xds_pcap_open(void *mem, const struct xds_pcap_config *cfg, int fd, struct xds_link **out)
{
    struct pcap *p = mem;

    *out = NULL;
    if (xds_pcap_size(cfg) == 0 || (uintptr_t)mem % 64)
        return XDS_ECONFIG;
    memset(p, 0, sizeof(*p));
    p->link = (struct xds_link){
        .ops = &pcap_ops,
        .flags = XDS_LINK_VIRTUAL_TIME | XDS_LINK_READ_ONLY,
        .mtu = MTU,
        .fd = -1,
    };
    p->window_bytes = up(cfg->window);
    p->window[0] = (uint8_t *)mem + up(sizeof(*p));
    p->window[1] = p->window[0] + p->window_bytes;
    p->all_types = cfg->flags & XDS_PCAP_ALL_TYPES;
    int r = xdsi_source_open(&p->source, fd, p->window[1] + p->window_bytes);
    p->info.packing = p->source.packing;
    if (r == 0)
        r = begin(p);
    if (r < 0) {
        xdsi_source_close(&p->source);
        return r;
    }
    (void)advance(p); /* so that the interfaces before the first frame are known; rx tells what failed */
    *out = &p->link;
    return 0;
}

void xds_pcap_info(const struct xds_link *l, struct xds_pcap_info *out)
{
    *out = ((const struct pcap *)l)->info;
}

int xds_pcap_interface(const struct xds_link *l, unsigned index, struct xds_pcap_interface *out)
{
    const struct pcap *p = (const struct pcap *)l;

    if (index >= p->info.interfaces)
        return -ENOENT;
    *out = p->interfaces[index].shown;
    return 0;
}
