/* stat.h: counters and histograms in mapped memory that says by itself what is in it.
 *
 *   header   magic, version, name, owner (pid and start time), beat
 *   table    entries {kind, name, unit, offset, length}
 *   values   u64 words, each group on cache lines of its own; histograms (hist.h)
 *
 * One process builds it at start and one thread writes the values with plain stores; any other may map
 * the file read only and read, without a lock and without the writer knowing. Entries are only ever
 * added: an entry is whole before n_entries counts it. Offsets are from the start of the segment, so
 * readers need no address. The Python face is xdpstack/stats.py; the layout of the two structs is what
 * other languages read, and changes with XDS_STAT_VERSION.
 */
#ifndef XDS_STAT_H
#define XDS_STAT_H

#include <stddef.h>
#include <stdint.h>

#include "hist.h"

#define XDS_STAT_MAGIC   0x3154415453534458 /* "XDSSTAT1", little-endian */
#define XDS_STAT_VERSION 1
#define XDS_STAT_NAME    80

enum xds_stat_kind {
    XDS_STAT_COUNTER = 1, /* u64, only grows                                                  */
    XDS_STAT_GAUGE = 2,   /* u64, a level: orders alive, gaps open                            */
    XDS_STAT_HIST = 3,    /* struct xds_hist                                                  */
};

struct xds_stat_entry {
    uint32_t kind;            /* enum xds_stat_kind                                                    */
    uint32_t bytes;           /* of the value: 8, or sizeof(struct xds_hist)                           */
    uint64_t offset;          /* of the value, from the start of the segment                           */
    char name[XDS_STAT_NAME]; /* dotted: "engine.turns", "feed.itch50.decoded"                */
    char unit[32];            /* "packets", "bytes", "ns"                                              */
};

struct xds_stat {
    uint64_t magic;
    uint32_t version;
    uint32_t header_bytes; /* sizeof(struct xds_stat): the table starts there                 */
    uint64_t bytes;        /* of the whole segment                                            */
    uint32_t entry_bytes;  /* sizeof(struct xds_stat_entry)                                   */
    uint32_t cap_entries;
    uint32_t n_entries; /* stored last, with release order                                 */
    uint32_t pid;       /* of the owner                                                    */
    uint64_t pid_start; /* field 22 of /proc/PID/stat, so that a reused pid is not it      */
    int64_t created_ns; /* CLOCK_TAI                                                       */
    char name[40];
    uint64_t used; /* bytes given out so far                                          */
    uint64_t pad0[3];
    /* A line that the loop writes: that it lives can be seen from outside. */
    int64_t beat_ns; /* CLOCK_TAI of the last xds_stat_beat, 0: never                   */
    uint64_t pad1[7];
};

_Static_assert(sizeof(struct xds_stat_entry) == 128, "two lines");
_Static_assert(sizeof(struct xds_stat) == 192, "two lines, then the beat's own");

/* Bytes of a segment with room for so many entries, of which so many are histograms, in at most
 * `groups` groups of words. */
size_t xds_stat_size(uint32_t entries, uint32_t hists, uint32_t groups);
/* mem: kept, 64-byte aligned, zeroed. Returns 0, XDS_ECONFIG. */
int xds_stat_init(void *mem, size_t bytes, uint32_t cap_entries, const char *name, uint32_t pid,
                  uint64_t pid_start, int64_t now_ns);
/* A group: n words that one struct of u64 counters may fill, starting on a cache line. NULL: full. */
uint64_t *xds_stat_group(struct xds_stat *s, uint32_t n);
/* Name a word of a group. Returns 0, XDS_ECAPACITY (table full), XDS_ECONFIG (name, kind, foreign word). */
int xds_stat_name(struct xds_stat *s, uint64_t *word, const char *name, const char *unit, uint32_t kind);
/* One counter or gauge on a line of its own. NULL: full. */
uint64_t *xds_stat_counter(struct xds_stat *s, const char *name, const char *unit, uint32_t kind);
/* A histogram, ready to record. NULL: full. */
struct xds_hist *xds_stat_hist(struct xds_stat *s, const char *name, const char *unit);
/* The loop lives. Once a turn or less. */
void xds_stat_beat(struct xds_stat *s, int64_t now_ns);
/* Is this a whole segment of `bytes` bytes? Any bytes are safe. Returns entries, XDS_ETRUNC,
 * XDS_EMALFORMED, XDS_EFOREIGN (another magic or version). */
int xds_stat_check(const void *mem, size_t bytes);

#endif
