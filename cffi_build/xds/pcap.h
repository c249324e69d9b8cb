/* pcap.h: captures as a link (reading) and a writer of captures.
 *
 * Reads pcap (us, ns, either byte order) and pcapng (every block walked, unknown ones skipped, any
 * if_tsresol, several sections and interfaces), plain, gzip or zstd, as a stream through two windows
 * of bounded size. A record cut short by the end of the file is counted (rx_truncated), not
 * delivered. It is a link in virtual time: rx gives the frames whose stamp is at most `now`, deadline
 * names the next stamp; XDS_NEVER as `now` gives everything. frame.queue is the interface's number.
 *
 * Stamps are what the file holds, ns since 1970: UTC in foreign captures. Our own pcapng files say
 * CLOCK_TAI in the section header's comment, and carry the offset to UTC as if_tsoffset for other
 * readers; such stamps are given as they were recorded.
 */
#ifndef XDS_PCAP_H
#define XDS_PCAP_H

#include <stddef.h>
#include <stdint.h>

#include "link.h"

#define XDS_PCAP_INTERFACES_MAX 256
#define XDS_LINKTYPE_ETHERNET   1
#define XDS_LINKTYPE_USER0      147

enum xds_pcap_format {
    XDS_PCAP_FORMAT_PCAP = 1,
    XDS_PCAP_FORMAT_PCAPNG = 2,
};

enum xds_pcap_packing {
    XDS_PCAP_PLAIN = 0,
    XDS_PCAP_GZIP = 1,
    XDS_PCAP_ZSTD = 2,
};

enum xds_pcap_clock {
    XDS_PCAP_CLOCK_UTC = 0,
    XDS_PCAP_CLOCK_TAI = 1,
};

enum xds_pcap_flag {
    XDS_PCAP_ALL_TYPES = 1, /* deliver every link type, not only Ethernet               */
};

struct xds_pcap_config {
    uint32_t window; /* bytes, at least 4096: the largest record; two windows are held */
    uint32_t flags;  /* enum xds_pcap_flag                                            */
};

struct xds_pcap_info {
    uint64_t blocks;         /* records or blocks read                                */
    uint64_t blocks_skipped; /* of kinds that carry no packet and that we do not know */
    uint32_t format;         /* enum xds_pcap_format                                  */
    uint32_t packing;        /* enum xds_pcap_packing                                 */
    uint32_t clock;          /* enum xds_pcap_clock                                   */
    uint32_t sections;
    uint32_t interfaces;
    int32_t ended; /* 0: there is more; else what rx answers from now on: -EPIPE, ... */
};

struct xds_pcap_interface {
    uint64_t frames; /* records of it, delivered or not                               */
    uint32_t linktype;
    uint32_t snaplen;
    char name[64]; /* if_name, NUL ended; empty where the file has none               */
};

size_t xds_pcap_size(const struct xds_pcap_config *cfg); /* bytes to provide, 0 = bad config */
/* fd: kept until close, not closed; read from where it stands. mem: kept until close, aligned to 64.
 * Returns 0, XDS_ETRUNC shorter than its own header, XDS_EMALFORMED not a capture, -errno. Later, rx
 * answers -EPIPE at the end and XDS_EMALFORMED where a record contradicts itself. */
int xds_pcap_open(void *mem, const struct xds_pcap_config *cfg, int fd, struct xds_link **out);
void xds_pcap_info(const struct xds_link *l, struct xds_pcap_info *out);
int xds_pcap_interface(const struct xds_link *l, unsigned index,
                       struct xds_pcap_interface *out); /* 0, -ENOENT */

struct xds_pcap_writer_config {
    uint32_t format;      /* enum xds_pcap_format; pcap holds one interface              */
    uint32_t packing;     /* enum xds_pcap_packing                                       */
    uint32_t level;       /* of the packing; 0: its fastest useful                       */
    uint32_t buffer;      /* bytes gathered before a write; at least snaplen + 4096      */
    uint32_t snaplen;     /* bytes of a record; longer ones are cut and flagged          */
    uint32_t clock;       /* enum xds_pcap_clock of the stamps                           */
    int32_t tai_offset_s; /* CLOCK_TAI: TAI - UTC in seconds, as if_tsoffset          */
    uint32_t pad;
};

struct xds_pcap_writer_stats {
    uint64_t records, bytes; /* taken, before packing                                 */
    uint64_t cut;            /* longer than snaplen                                   */
    uint64_t written;        /* bytes that went into the file                         */
    uint64_t writes;         /* system calls                                          */
};

struct xds_pcap_writer;
size_t xds_pcap_writer_size(const struct xds_pcap_writer_config *cfg); /* 0 = bad config */
/* fd, mem: as above. Returns 0, XDS_ECONFIG, -errno. */
int xds_pcap_writer_open(void *mem, const struct xds_pcap_writer_config *cfg, int fd,
                         struct xds_pcap_writer **out);
/* Returns the interface's number, XDS_ECAPACITY: the format or the bound allows no more. */
int xds_pcap_writer_add_interface(struct xds_pcap_writer *w, const char *name, uint32_t linktype);
/* Append one record of len bytes out of orig_len on the wire. Returns 0, 1 it was cut to snaplen,
 * XDS_ESTATE no such interface, -errno of the write (then every later call answers the same). */
int xds_pcap_writer_write(struct xds_pcap_writer *w, unsigned interface, int64_t ns, const uint8_t *data,
                          uint32_t len, uint32_t orig_len);
/* The same with a comment of the packet (UTF-8, cut at 1,024 bytes), which only pcapng keeps. */
int xds_pcap_writer_write_comment(struct xds_pcap_writer *w, unsigned interface, int64_t ns,
                                  const uint8_t *data, uint32_t len, uint32_t orig_len, const char *comment,
                                  uint32_t comment_len);
int xds_pcap_writer_flush(struct xds_pcap_writer *w); /* what was taken is readable in the file */
int xds_pcap_writer_close(struct xds_pcap_writer *w); /* twice is calm; fd stays open */
void xds_pcap_writer_stats(const struct xds_pcap_writer *w, struct xds_pcap_writer_stats *out);

#endif
