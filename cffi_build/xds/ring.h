/* ring.h: one writer, one reader, records of any length in memory that is mapped twice in a row, so
 * that no record wraps and each can be handed out as one view.
 *
 *   writer   claim -> fill -> commit          reader   peek, peek, ... -> release
 *
 * Nothing is ever overwritten before it was released: a claim that does not fit says so (0, counted in
 * `refused`) and the caller decides to wait or to drop and count. So what was committed is delivered
 * once, in order, whole. There is no lapped mode.
 *
 * The writer's and the reader's offsets are on cache lines of their own, two lines apart (adjacent-line
 * prefetch), and count bytes since the start; each side keeps the other's last seen offset beside its
 * own and looks again only when it must. Commit stores with release order, peek loads with acquire order
 * (C11). The two sides may be threads or processes; the reader never trusts a length that it has read.
 *
 * Memory: a page of header, then the data, then the same data again; xds_ring_map() makes it of a
 * file descriptor (memfd, or a file in /dev/shm for other processes).
 *
 * The segment is described byte by byte in ring.md beside this file. ring_reader_inl.h is a reader that needs nothing
 * but these headers, for C and C++; the core's own reader is the same code.
 */
#ifndef XDS_RING_H
#define XDS_RING_H

#include <stddef.h>
#include <stdint.h>

#define XDS_RING_MAGIC       0x31474e4952534458 /* "XDSRING1", little-endian */
#define XDS_RING_VERSION     3
#define XDS_RING_ENDIAN      0x01020304
#define XDS_RING_TEXT_AT     1024    /* in the header: what a record holds, numpy's descr as JSON     */
#define XDS_RING_TEXT        1024    /* bytes of it, NUL-padded; empty: not said                      */
#define XDS_RING_HEADER      4096    /* bytes before the data, at least          */
#define XDS_RING_HEADER_HUGE 2097152 /* where the memory has huge pages      */
#define XDS_RING_BYTES       8388608 /* of data, where nothing else is said      */

/* Before each record, 8-byte aligned. */
struct xds_ring_record {
    uint32_t len;  /* bytes that follow, without padding */
    uint32_t kind; /* the writer's                       */
};

/* Written before the tail that it speaks of: the records up to there. */
struct xds_ring_note {
    uint64_t tail, number;
};

struct xds_ring {
    uint64_t magic;
    uint32_t version, header_bytes;
    uint64_t bytes;                      /* of data, a power of two and a multiple of the page       */
    uint32_t closed;                     /* the writer has ended: what is left is all there will be  */
    uint32_t writer_pid, reader_pid;     /* 0: none                                       */
    uint32_t endian;                     /* XDS_RING_ENDIAN as the maker's host has it       */
    uint64_t writer_start, reader_start; /* field 22 of /proc/PID/stat                */
    uint64_t pad1[9];
    /* The writer's lines. */
    uint64_t tail;                 /* committed: records before it can be read                 */
    uint64_t head_seen;            /* the reader's offset, as last looked at                   */
    uint64_t claimed;              /* bytes of the record being filled, 0: none                */
    uint64_t written;              /* records committed                                        */
    uint64_t refused;              /* claims that found no room                                */
    struct xds_ring_note noted[2]; /* by the parity of number                       */
    uint64_t pad2[7];
    /* The reader's lines. */
    uint64_t head; /* released: bytes before it may be overwritten             */
    uint64_t tail_seen;
    uint64_t cursor; /* peeked up to here, not released yet                      */
    uint64_t read;   /* records peeked                                           */
    uint64_t pad3[12];
    uint32_t sleep; /* futex: the reader sets 1 before it sleeps, the writer 0 as it wakes it */
    uint32_t pad4;
    uint64_t pad5[15];
};

/* Map a descriptor of header + bytes bytes: header, data, data again. header: XDS_RING_HEADER or
 * XDS_RING_HEADER_HUGE, bytes: a power of two, both multiples of the memory's page. Returns 0 and the address,
 * XDS_ECONFIG, -errno. */
int xds_ring_map(int fd, uint64_t header, uint64_t bytes, void **out);
/* The same, private to this process and its threads, with a descriptor of its own (memfd; with the larger header
 * of huge pages: -ENOMEM where too few are free). */
int xds_ring_map_private(uint64_t header, uint64_t bytes, void **out);
int xds_ring_unmap(void *mem, uint64_t header, uint64_t bytes);

/* Make mapped memory an empty ring. text: at most XDS_RING_TEXT - 1 bytes, NULL none. Returns 0, XDS_ECONFIG. */
int xds_ring_init(void *mem, uint64_t header, uint64_t bytes, const char *text);
/* What a record holds, in the maker's words. */
const char *xds_ring_text(const struct xds_ring *r);
/* Is it a ring of this version and byte order with sound offsets, in a file of that size? Safe on any
 * XDS_RING_HEADER bytes. Returns 0, XDS_EFOREIGN, XDS_EMALFORMED. */
int xds_ring_check(const struct xds_ring *r, uint64_t file_bytes);
/* Take a side: what the process before it had claimed or peeked but not finished is as if it never
 * was. A side is free when its pid is 0 or that process is dead; telling is the caller's. */
void xds_ring_attach_writer(struct xds_ring *r, uint32_t pid, uint64_t pid_start);
void xds_ring_attach_reader(struct xds_ring *r, uint32_t pid, uint64_t pid_start);
void xds_ring_close(struct xds_ring *r); /* by the writer: no more will come */

/* Room for a record of len bytes. 1: *out is where to fill it (leased until commit), 0: no room now,
 * XDS_ECAPACITY: it can never fit, XDS_ESTATE: one is being filled. */
int xds_ring_claim(struct xds_ring *r, uint32_t len, void **out);
/* Publish what was claimed, of len bytes or fewer than claimed. Returns 0, XDS_ESTATE. */
int xds_ring_commit(struct xds_ring *r, uint32_t kind, uint32_t len);
/* Give a claim up. */
void xds_ring_abort(struct xds_ring *r);
/* Claim, copy, commit. 1 written, 0 no room now, XDS_ECAPACITY, XDS_ESTATE. */
int xds_ring_write(struct xds_ring *r, uint32_t kind, const void *data, uint32_t len);

/* The next record: 1 and *out (data follows it; leased until release), 0 none now, -EPIPE none and
 * the writer has closed, XDS_EMALFORMED the other side broke the ring. */
int xds_ring_peek(struct xds_ring *r, const struct xds_ring_record **out);
/* Up to cap records at once. Returns how many, 0 none now, -EPIPE, XDS_EMALFORMED. */
int xds_ring_peek_many(struct xds_ring *r, const struct xds_ring_record **out, unsigned cap);
/* Records of len bytes each that wait one behind the other: how many, and *at where the first one's head lies in the
 * data; the next is xdsi_ring_space(len) further. One of another length ends them and stays; XDS_ESTATE: it is the
 * first. 0 none now, -EPIPE, XDS_EMALFORMED. */
int64_t xds_ring_peek_rows(struct xds_ring *r, uint32_t len, uint64_t *at);
/* Give back everything that was peeked. */
void xds_ring_release(struct xds_ring *r);
/* Sleep until something waits (or the writer has closed), for at most ns. 1 so it does, 0 not. */
int xds_ring_wait(struct xds_ring *r, int64_t ns);
/* Bytes committed and not released (with headers and padding). Either side, or a watcher. */
uint64_t xds_ring_used(const struct xds_ring *r);

#endif
