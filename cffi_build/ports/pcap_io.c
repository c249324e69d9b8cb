/* pcap_io.c: bytes of a capture in and out: plain, gzip (zlib), zstd (libzstd).
 *
 * The libraries take their own memory when a stream is set up; per packet nothing is allocated.
 * A gzip file may have several members and a zstd file several frames, as `cat a.gz b.gz` makes them.
 */
#include "ports/pcap_io.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define GZIP_WINDOW (15 + 16) /* zlib: largest window, gzip wrapper */

/* More packed bytes into s->in behind what is there. Returns 0, -errno. */
static int refill(struct xdsi_source *s)
{
    if (s->in_at) {
        memmove(s->in, s->in + s->in_at, s->in_end - s->in_at);
        s->in_end -= s->in_at;
        s->in_at = 0;
    }
    while (s->in_end < XDSI_IO_CHUNK && !s->eof) {
        ssize_t n = read(s->fd, s->in + s->in_end, XDSI_IO_CHUNK - s->in_end);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            s->eof = true;
        s->in_end += (size_t)n;
        if (n > 0 && s->in_end >= 4)
            break;
    }
    return 0;
}

static bool starts(const struct xdsi_source *s, const char *magic, size_t len)
{
    return s->in_end - s->in_at >= len && memcmp(s->in + s->in_at, magic, len) == 0;
}

int xdsi_source_open(struct xdsi_source *s, int fd, uint8_t *in)
{
    *s = (struct xdsi_source){.fd = fd, .in = in};
    int r = refill(s);
    if (r < 0)
        return r;
    if (starts(s, "\x1f\x8b", 2)) {
        s->packing = XDS_PCAP_GZIP;
        return inflateInit2(&s->z, GZIP_WINDOW) == Z_OK ? 0 : -ENOMEM;
    }
    if (starts(s, "\x28\xb5\x2f\xfd", 4)) {
        s->packing = XDS_PCAP_ZSTD;
        s->d = ZSTD_createDStream();
        return s->d ? 0 : -ENOMEM;
    }
    return 0;
}

/* One step of the unpacker over s->in. Returns the bytes made (0: it wants more, or is done). */
static int64_t inflate_step(struct xdsi_source *s, uint8_t *to, size_t cap)
{
    if (s->between) { /* another member, or padding that gzip itself ignores */
        if (!starts(s, "\x1f\x8b", 2)) {
            s->done = true;
            return 0;
        }
        inflateReset(&s->z);
        s->between = false;
    }
    s->z.next_in = s->in + s->in_at;
    s->z.avail_in = (uInt)(s->in_end - s->in_at);
    s->z.next_out = to;
    s->z.avail_out = (uInt)cap;
    int r = inflate(&s->z, Z_NO_FLUSH);
    s->in_at = s->in_end - s->z.avail_in;
    if (r != Z_OK && r != Z_STREAM_END && r != Z_BUF_ERROR)
        return XDS_EMALFORMED;
    s->between = r == Z_STREAM_END;
    return (int64_t)(cap - s->z.avail_out);
}

static int64_t zstd_step(struct xdsi_source *s, uint8_t *to, size_t cap)
{
    ZSTD_inBuffer in = {s->in, s->in_end, s->in_at};
    ZSTD_outBuffer out = {to, cap, 0};
    size_t r = ZSTD_decompressStream(s->d, &out, &in);

    s->in_at = in.pos;
    if (ZSTD_isError(r))
        return XDS_EMALFORMED;
    s->between = r == 0;
    return (int64_t)out.pos;
}

static int64_t unpack(struct xdsi_source *s, uint8_t *to, size_t cap)
{
    while (!s->done) {
        if (s->in_at == s->in_end || (s->between && s->in_end - s->in_at < 2)) {
            int r = refill(s);
            if (r < 0)
                return r;
        }
        size_t before = s->in_at;
        if (s->between && s->in_at == s->in_end) {
            s->done = true;
            break;
        }
        int64_t n = s->packing == XDS_PCAP_GZIP ? inflate_step(s, to, cap) : zstd_step(s, to, cap);
        if (n != 0)
            return n;
        if (s->eof && s->in_at == before && !s->done)
            s->cut = s->done = true;
    }
    return 0;
}

int64_t xdsi_source_read(struct xdsi_source *s, uint8_t *to, size_t cap)
{
    if (cap > 1u << 30)
        cap = 1u << 30;
    if (s->packing != XDS_PCAP_PLAIN)
        return unpack(s, to, cap);
    size_t held = s->in_end - s->in_at;
    if (held) { /* the bytes that open looked at */
        size_t n = held < cap ? held : cap;
        memcpy(to, s->in + s->in_at, n);
        s->in_at += n;
        return (int64_t)n;
    }
    while (!s->eof) {
        ssize_t n = read(s->fd, to, cap);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        s->eof = n == 0;
        return n;
    }
    return 0;
}

void xdsi_source_close(struct xdsi_source *s)
{
    if (s->packing == XDS_PCAP_GZIP)
        inflateEnd(&s->z);
    if (s->d)
        ZSTD_freeDStream(s->d);
    s->d = NULL;
    s->packing = XDS_PCAP_PLAIN;
}

int xdsi_sink_open(struct xdsi_sink *s, int fd, uint32_t packing, uint32_t level, uint8_t *out)
{
    *s = (struct xdsi_sink){.fd = fd, .packing = packing, .out = out};
    int fast = level ? (int)level : 1;
    if (packing == XDS_PCAP_GZIP)
        return deflateInit2(&s->z, fast > 9 ? 9 : fast, Z_DEFLATED, GZIP_WINDOW, 8, Z_DEFAULT_STRATEGY) ==
                       Z_OK
                   ? 0
                   : -ENOMEM;
    if (packing == XDS_PCAP_ZSTD) {
        s->c = ZSTD_createCStream();
        if (!s->c || ZSTD_isError(ZSTD_initCStream(s->c, fast)))
            return -ENOMEM;
    }
    return 0;
}

static int put_plain(struct xdsi_sink *s, const uint8_t *data, size_t len)
{
    while (len) {
        ssize_t n = write(s->fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        data += n;
        len -= (size_t)n;
        s->written += (uint64_t)n;
        s->writes++;
    }
    return 0;
}

static int put_gzip(struct xdsi_sink *s, const uint8_t *data, size_t len, enum xdsi_sink_end end)
{
    static const int how[] = {Z_NO_FLUSH, Z_SYNC_FLUSH, Z_FINISH};

    s->z.next_in = (Bytef *)(uintptr_t)data;
    s->z.avail_in = (uInt)len;
    do {
        s->z.next_out = s->out;
        s->z.avail_out = XDSI_IO_CHUNK;
        if (deflate(&s->z, how[end]) == Z_STREAM_ERROR)
            return -EIO;
        int r = put_plain(s, s->out, XDSI_IO_CHUNK - s->z.avail_out);
        if (r < 0)
            return r;
    } while (s->z.avail_out == 0);
    return 0;
}

static int put_zstd(struct xdsi_sink *s, const uint8_t *data, size_t len, enum xdsi_sink_end end)
{
    static const ZSTD_EndDirective how[] = {ZSTD_e_continue, ZSTD_e_flush, ZSTD_e_end};
    ZSTD_inBuffer in = {data, len, 0};
    size_t left;

    do {
        ZSTD_outBuffer out = {s->out, XDSI_IO_CHUNK, 0};
        left = ZSTD_compressStream2(s->c, &out, &in, how[end]);
        if (ZSTD_isError(left))
            return -EIO;
        int r = put_plain(s, s->out, out.pos);
        if (r < 0)
            return r;
    } while (end == XDSI_SINK_MORE ? in.pos < in.size : left != 0);
    return 0;
}

int xdsi_sink_put(struct xdsi_sink *s, const uint8_t *data, size_t len, enum xdsi_sink_end end)
{
    if (s->packing == XDS_PCAP_GZIP)
        return put_gzip(s, data, len, end);
    if (s->packing == XDS_PCAP_ZSTD)
        return put_zstd(s, data, len, end);
    return put_plain(s, data, len);
}

void xdsi_sink_close(struct xdsi_sink *s)
{
    if (s->packing == XDS_PCAP_GZIP)
        deflateEnd(&s->z);
    if (s->c)
        ZSTD_freeCStream(s->c);
    s->c = NULL;
    s->packing = XDS_PCAP_PLAIN;
}
