/* pcap_write.c: a writer of captures, nanosecond stamps, host byte order.
 *
 * A record is built in the buffer; the buffer goes out when it is nearly full, at flush and at
 * close. So one record costs a copy, and a system call comes once a buffer. The first failure of a
 * write is kept and answered from then on: a recording with a hole would not be one.
 */
#include "ports/pcap_io.h"

#include <errno.h>
#include <string.h>

#define PCAP_NS        0xa1b23c4du
#define SHB            0x0a0d0d0au
#define ORDER_MAGIC    0x1a2b3c4du
#define EPB_BYTES      32u /* an enhanced packet block without data and options */
#define NAME_MAX_BYTES 63u
#define COMMENT_MAX    1024u
#define BUFFER_EXTRA   4096u /* what is in the buffer beside one record        */
#define BUFFER_MAX     (256u << 20)
#define SNAPLEN_MAX    (16u << 20)
#define TEXT_TAI       "CLOCK_TAI nanoseconds; if_tsoffset leads to UTC"
#define TEXT_UTC       "UTC nanoseconds"
#define TEXT_BY        "xdpstack"

enum option {
    OPT_END = 0,
    OPT_COMMENT = 1,
    OPT_SHB_USERAPPL = 4,
    OPT_IF_NAME = 2,
    OPT_IF_TSRESOL = 9,
    OPT_IF_TSOFFSET = 14
};

struct xds_pcap_writer {
    struct xds_pcap_writer_config cfg;
    struct xdsi_sink sink;
    struct xds_pcap_writer_stats stats;
    uint8_t *buffer;
    size_t used;
    uint32_t interfaces;
    int error; /* of the first write that failed */
    bool closed;
};

static size_t up(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

size_t xds_pcap_writer_size(const struct xds_pcap_writer_config *c)
{
    if (c->format < XDS_PCAP_FORMAT_PCAP || c->format > XDS_PCAP_FORMAT_PCAPNG ||
        c->packing > XDS_PCAP_ZSTD || c->snaplen == 0 || c->snaplen > SNAPLEN_MAX ||
        c->buffer < c->snaplen + BUFFER_EXTRA || c->buffer > BUFFER_MAX || c->clock > XDS_PCAP_CLOCK_TAI)
        return 0;
    return up(sizeof(struct xds_pcap_writer)) + up(c->buffer) + (c->packing ? XDSI_IO_CHUNK : 0);
}

static void put(struct xds_pcap_writer *w, const void *data, size_t len)
{
    if (len)
        memcpy(w->buffer + w->used, data, len);
    w->used += len;
}

static void put16(struct xds_pcap_writer *w, uint16_t v)
{
    put(w, &v, sizeof(v));
}

static void put32(struct xds_pcap_writer *w, uint32_t v)
{
    put(w, &v, sizeof(v));
}

static void pad4(struct xds_pcap_writer *w)
{
    static const uint8_t zero[4];
    put(w, zero, (4 - w->used % 4) % 4); /* blocks begin at multiples of 4 within the buffer */
}

static void put_option(struct xds_pcap_writer *w, uint16_t code, const void *value, size_t len)
{
    put16(w, code);
    put16(w, (uint16_t)len);
    put(w, value, len);
    pad4(w);
}

/* Begin a block whose length end_block() fills in. Returns where it begins. */
static size_t begin_block(struct xds_pcap_writer *w, uint32_t type)
{
    size_t at = w->used;
    put32(w, type);
    put32(w, 0);
    return at;
}

static void end_block(struct xds_pcap_writer *w, size_t at)
{
    uint32_t len = (uint32_t)(w->used - at) + 4;
    memcpy(w->buffer + at + 4, &len, sizeof(len));
    put32(w, len);
}

static void section_header(struct xds_pcap_writer *w)
{
    const char *text = w->cfg.clock == XDS_PCAP_CLOCK_TAI ? TEXT_TAI : TEXT_UTC;
    size_t at = begin_block(w, SHB);

    put32(w, ORDER_MAGIC);
    put16(w, 1);
    put16(w, 0);
    put32(w, UINT32_MAX); /* section length: not said */
    put32(w, UINT32_MAX);
    put_option(w, OPT_COMMENT, text, strlen(text));
    put_option(w, OPT_SHB_USERAPPL, TEXT_BY, strlen(TEXT_BY));
    put_option(w, OPT_END, NULL, 0);
    end_block(w, at);
}

static void interface_block(struct xds_pcap_writer *w, const char *name, uint32_t linktype)
{
    size_t at = begin_block(w, 1);
    uint8_t nine = 9;
    int64_t offset = -(int64_t)w->cfg.tai_offset_s;

    put16(w, (uint16_t)linktype);
    put16(w, 0);
    put32(w, w->cfg.snaplen);
    put_option(w, OPT_IF_NAME, name, strnlen(name, NAME_MAX_BYTES));
    put_option(w, OPT_IF_TSRESOL, &nine, 1);
    if (w->cfg.clock == XDS_PCAP_CLOCK_TAI && offset)
        put_option(w, OPT_IF_TSOFFSET, &offset, sizeof(offset));
    put_option(w, OPT_END, NULL, 0);
    end_block(w, at);
}

static void pcap_header(struct xds_pcap_writer *w, uint32_t linktype)
{
    put32(w, PCAP_NS);
    put16(w, 2);
    put16(w, 4);
    put32(w, 0);
    put32(w, 0);
    put32(w, w->cfg.snaplen);
    put32(w, linktype);
}

/* Send the buffer on. */
static int drain(struct xds_pcap_writer *w, enum xdsi_sink_end end)
{
    if (w->error)
        return w->error;
    int r = xdsi_sink_put(&w->sink, w->buffer, w->used, end);
    w->used = 0;
    w->stats.written = w->sink.written;
    w->stats.writes = w->sink.writes;
    if (r < 0)
        w->error = r;
    return r;
}

int xds_pcap_writer_open(void *mem, const struct xds_pcap_writer_config *cfg, int fd,
                         struct xds_pcap_writer **out)
{
    struct xds_pcap_writer *w = mem;

    *out = NULL;
    if (xds_pcap_writer_size(cfg) == 0 || (uintptr_t)mem % 64)
        return XDS_ECONFIG;
    *w = (struct xds_pcap_writer){.cfg = *cfg};
    w->buffer = (uint8_t *)mem + up(sizeof(*w));
    int r = xdsi_sink_open(&w->sink, fd, cfg->packing, cfg->level, w->buffer + up(cfg->buffer));
    if (r < 0)
        return r;
    if (cfg->format == XDS_PCAP_FORMAT_PCAPNG)
        section_header(w);
    *out = w;
    return 0;
}

int xds_pcap_writer_add_interface(struct xds_pcap_writer *w, const char *name, uint32_t linktype)
{
    if (w->closed)
        return XDS_ESTATE;
    if (w->interfaces == (w->cfg.format == XDS_PCAP_FORMAT_PCAP ? 1 : XDS_PCAP_INTERFACES_MAX) ||
        linktype > UINT16_MAX)
        return XDS_ECAPACITY;
    if (w->cfg.buffer - w->used < BUFFER_EXTRA / 2) {
        int r = drain(w, XDSI_SINK_MORE);
        if (r < 0)
            return r;
    }
    if (w->cfg.format == XDS_PCAP_FORMAT_PCAP)
        pcap_header(w, linktype);
    else
        interface_block(w, name, linktype);
    return (int)w->interfaces++;
}

static void put_pcap(struct xds_pcap_writer *w, int64_t ns, const uint8_t *data, uint32_t len, uint32_t orig)
{
    put32(w, (uint32_t)(ns / 1000000000));
    put32(w, (uint32_t)(ns % 1000000000));
    put32(w, len);
    put32(w, orig);
    put(w, data, len);
}

static uint32_t comment_bytes(uint32_t len) /* an option and the end of options */
{
    return len ? 4 + ((len + 3) & ~3u) + 4 : 0;
}

static void put_epb(struct xds_pcap_writer *w, const uint32_t record[5], const uint8_t *data,
                    const char *comment, uint32_t comment_len)
{
    uint32_t len = record[3];
    uint32_t total = EPB_BYTES + ((len + 3) & ~3u) + comment_bytes(comment_len);
    const uint32_t head[2] = {6, total};

    put(w, head, sizeof(head));
    put(w, record, 5 * sizeof(uint32_t));
    put(w, data, len);
    pad4(w);
    if (comment_len) {
        put_option(w, OPT_COMMENT, comment, comment_len);
        put_option(w, OPT_END, NULL, 0);
    }
    put32(w, total);
}

int xds_pcap_writer_write(struct xds_pcap_writer *w, unsigned interface, int64_t ns, const uint8_t *data,
                          uint32_t len, uint32_t orig_len)
{
    return xds_pcap_writer_write_comment(w, interface, ns, data, len, orig_len, NULL, 0);
}

int xds_pcap_writer_write_comment(struct xds_pcap_writer *w, unsigned interface, int64_t ns,
                                  const uint8_t *data, uint32_t len, uint32_t orig_len, const char *comment,
                                  uint32_t comment_len)
{
    uint32_t keep = len < w->cfg.snaplen ? len : w->cfg.snaplen;
    uint32_t orig = orig_len > len ? orig_len : len;

    if (w->closed || interface >= w->interfaces)
        return XDS_ESTATE;
    if (comment_len > COMMENT_MAX)
        comment_len = COMMENT_MAX;
    if (w->error)
        return w->error;
    if (w->cfg.buffer - w->used < keep + EPB_BYTES + 4 + comment_bytes(comment_len)) {
        int r = drain(w, XDSI_SINK_MORE);
        if (r < 0)
            return r;
    }
    if (w->cfg.format == XDS_PCAP_FORMAT_PCAP) {
        put_pcap(w, ns, data, keep, orig);
    } else {
        const uint32_t record[5] = {interface, (uint32_t)((uint64_t)ns >> 32), (uint32_t)ns, keep, orig};
        put_epb(w, record, data, comment, comment_len);
    }
    w->stats.records++;
    w->stats.bytes += keep;
    w->stats.cut += keep < len;
    return keep < len;
}

int xds_pcap_writer_flush(struct xds_pcap_writer *w)
{
    return w->closed ? XDS_ESTATE : drain(w, XDSI_SINK_FLUSH);
}

int xds_pcap_writer_close(struct xds_pcap_writer *w)
{
    if (w->closed)
        return 0;
    int r = drain(w, XDSI_SINK_FINISH);
    w->closed = true;
    xdsi_sink_close(&w->sink);
    return r;
}

void xds_pcap_writer_stats(const struct xds_pcap_writer *w, struct xds_pcap_writer_stats *out)
{
    *out = w->stats;
}
