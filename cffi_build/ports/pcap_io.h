/* pcap_io.h: bytes of a capture in and out, unpacked and packed on the way. */
#ifndef XDSI_PCAP_IO_H
#define XDSI_PCAP_IO_H

#include "xds/base.h"
#include "xds/pcap.h"

#include <stdbool.h>
#include <zlib.h>
#include <zstd.h>

#define XDSI_IO_CHUNK (128u << 10) /* bytes of packed data held at once */

struct xdsi_source {
    int fd;
    uint32_t packing; /* enum xds_pcap_packing                                  */
    bool eof;         /* the file gave its last byte                            */
    bool done;        /* and so did the unpacker                                */
    bool cut;         /* the packed stream ended before its own end             */
    bool between;     /* at a border of gzip members or zstd frames             */
    uint8_t *in;      /* [XDSI_IO_CHUNK]                                        */
    size_t in_at, in_end;
    z_stream z;
    ZSTD_DStream *d;
};

/* Look at the first bytes and set the unpacker up. in: XDSI_IO_CHUNK bytes, kept. 0, -errno. */
int xdsi_source_open(struct xdsi_source *s, int fd, uint8_t *in);
/* Read up to cap bytes. Returns the count, 0 at the end, XDS_EMALFORMED the packing is broken, -errno. */
int64_t xdsi_source_read(struct xdsi_source *s, uint8_t *to, size_t cap);
void xdsi_source_close(struct xdsi_source *s);

enum xdsi_sink_end { XDSI_SINK_MORE = 0, XDSI_SINK_FLUSH = 1, XDSI_SINK_FINISH = 2 };

struct xdsi_sink {
    int fd;
    uint32_t packing;
    uint8_t *out; /* [XDSI_IO_CHUNK], unused when plain */
    uint64_t written, writes;
    z_stream z;
    ZSTD_CStream *c;
};

int xdsi_sink_open(struct xdsi_sink *s, int fd, uint32_t packing, uint32_t level, uint8_t *out);
/* Take all of it. Returns 0, -errno. */
int xdsi_sink_put(struct xdsi_sink *s, const uint8_t *data, size_t len, enum xdsi_sink_end end);
void xdsi_sink_close(struct xdsi_sink *s);

#endif
