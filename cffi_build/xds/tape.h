/* tape.h: one writer, any number of readers, records of any length in memory that is mapped twice in a
 * row. The writer never waits and never looks at a reader: who is a whole tape behind has been lapped,
 * goes on at the oldest record that is safe, and is told how many it lost. What a reader is given was
 * whole when it was copied; a record that was overwritten meanwhile is never delivered.
 *
 * (ring.h is the other promise: one reader, nothing is ever overwritten, a full ring says so.)
 *
 * The segment is described byte by byte in tape.md beside this file. tape_reader_inl.h is a reader that
 * needs nothing but these headers, for C and C++; Python's reader is the same code.
 */
#ifndef XDS_TAPE_H
#define XDS_TAPE_H

#include <stddef.h>
#include <stdint.h>

#include "base.h"

#define XDS_TAPE_MAGIC       0x3145504154534458 /* "XDSTAPE1", little-endian                     */
#define XDS_TAPE_VERSION     1
#define XDS_TAPE_ENDIAN      0x01020304
#define XDS_TAPE_HEADER      4096    /* bytes before the data, at least                          */
#define XDS_TAPE_HEADER_HUGE 2097152 /* where the memory has huge pages                          */
#define XDS_TAPE_BYTES       8388608 /* of data, where nothing else is said                      */
#define XDS_TAPE_READERS     16      /* slots: readers that others can see                       */
#define XDS_TAPE_MARKS       64      /* parts of the data, each with its first record's offset   */
#define XDS_TAPE_TEXT        1024    /* bytes for the description of a record                    */
#define XDS_TAPE_AHEAD       128     /* bytes behind the newest record that the writer keeps 0   */

/* Before each record, 8-byte aligned. */
struct xds_tape_record {
    uint64_t stamp; /* the record's number from 1 on; 0: not written yet. Stored last. */
    uint32_t len;   /* bytes that follow, without padding                              */
    uint32_t kind;  /* the writer's                                                    */
};

/* A reader, as others see it: written by the reader alone, on two cache lines of its own. */
struct xds_tape_slot {
    uint32_t pid; /* 0: free */
    uint32_t pad0;
    uint64_t start;  /* field 22 of /proc/PID/stat                                */
    uint64_t cursor; /* offset of the record that it reads next                   */
    uint64_t next;   /* that record's number, 0: not known                        */
    uint64_t lost;   /* records that it lost by being lapped                      */
    uint64_t laps;   /* how often that was                                        */
    char name[16];   /* NUL-padded                                                */
    uint64_t pad1[8];
};

/* The header. Offsets count bytes since the tape was made; data lies at offset & (bytes - 1). */
struct xds_tape {
    uint64_t magic;
    uint32_t version, endian;
    uint32_t header_bytes, readers;
    uint64_t bytes;      /* of data, a power of two                                     */
    uint64_t part;       /* bytes / XDS_TAPE_MARKS                                      */
    int64_t created_ns;  /* CLOCK_TAI                                                   */
    uint32_t record_len; /* each record has this many bytes, 0: any                     */
    uint32_t closed;     /* the writer has ended: what is left is all there will be     */
    uint32_t writer_pid; /* 0: none                                                     */
    uint32_t pad0;
    uint64_t writer_start; /* field 22 of /proc/PID/stat                                */
    uint64_t pad1[7];
    /* The writer's lines. */
    uint64_t tail;    /* committed: records before it can be read                        */
    uint64_t last;    /* offset of the newest record                                     */
    uint64_t written; /* its number                                                      */
    uint64_t pad2[13];
    /* What tells a lapped reader, moved a part at a time so that readers keep the line. */
    uint64_t front; /* bytes before it may have been written: more than bytes ago is void */
    uint64_t pad3[15];
    uint32_t sleep; /* futex: a reader sets 1 before it sleeps, the writer 0 as it wakes all */
    uint32_t pad4;
    uint64_t pad5[15];
    uint64_t marks[64]; /* by part: offset of the newest record that begins in it             */
    char text[1024];    /* what a record holds: numpy's descr as JSON, NUL-padded             */
    struct xds_tape_slot slots[16];
};

/* A side's own memory, never shared. */
struct xds_tape_writer {
    struct xds_tape *tape;
    uint8_t *data;
    uint64_t bytes, part, tail, front, next;
    uint64_t unmarked; /* records from this offset on are the first of their part */
    uint64_t claimed;  /* bytes of the record being filled, 0: none               */
    uint64_t cleared;  /* from the tail to this offset all is 0                   */
};

struct xds_tape_reader {
    struct xds_tape *tape;
    const uint8_t *data;
    uint64_t bytes, cursor;
    uint64_t next;              /* number that comes, 0: whichever                    */
    uint64_t before;            /* next as it was when the reader was lapped, 0: none */
    struct xds_tape_slot *slot; /* NULL: nobody sees this reader           */
    uint64_t need;              /* bytes of the record that was peeked     */
    uint64_t laps, lost;
    uint64_t given;  /* records that xds_tape_read() gave                  */
    uint64_t stride; /* of them, header and padding included, 0: they differ in length */
    uint64_t len;    /* of each of them, without header and padding, where stride is not 0 */
    void *room;      /* for xds_tape_next(): the caller's, kept; 8-byte aligned             */
    uint64_t room_bytes;
};

enum xds_tape_from {
    XDS_TAPE_NEWEST = 0, /* what is written from now on           */
    XDS_TAPE_OLDEST = 1, /* whatever is still whole               */
};

/* Map a descriptor of header + bytes bytes: header, data, data again. header: XDS_TAPE_HEADER or
 * XDS_TAPE_HEADER_HUGE, bytes: a power of two, both multiples of the memory's page. may: what this process
 * may change: 0 nothing, 1 the header (a reader's slot), 2 all. Returns 0 and the address, XDS_ECONFIG,
 * -errno. */
int xds_tape_map(int fd, uint64_t header, uint64_t bytes, int what, void **out);
int xds_tape_unmap(void *mem, uint64_t header, uint64_t bytes);

/* Make mapped memory, all zero, an empty tape. text: at most XDS_TAPE_TEXT - 1 bytes. Returns 0,
 * XDS_ECONFIG. */
int xds_tape_init(void *mem, uint64_t header, uint64_t bytes, uint32_t record_len, int64_t now,
                  const char *text);
/* Is it a tape with sound offsets, in a file of that size? Safe on any XDS_TAPE_HEADER bytes. Returns 0,
 * XDS_EFOREIGN (magic, version, byte order), XDS_EMALFORMED. */
int xds_tape_check(const struct xds_tape *t, uint64_t file_bytes);

/* Become the writer; that no other lives is the caller's to know. A record that the writer before had
 * not committed is as if it never was, one that it had goes on counting. Returns 0, XDS_EMALFORMED. */
int xds_tape_attach_writer(struct xds_tape_writer *w, struct xds_tape *t, uint32_t pid, uint64_t pid_start);
/* Room for a record of len bytes, leased until commit. 1, XDS_ECAPACITY: more than a quarter of the
 * tape or not the tape's record_len, XDS_ESTATE: one is being filled. */
int xds_tape_claim(struct xds_tape_writer *w, uint32_t len, void **out);
/* Publish what was claimed, of len bytes or fewer than claimed. Returns 0, XDS_ESTATE, XDS_ECAPACITY. */
int xds_tape_commit(struct xds_tape_writer *w, uint32_t kind, uint32_t len);
/* Give a claim up. */
void xds_tape_abort(struct xds_tape_writer *w);
/* Claim, copy, commit. 1, XDS_ECAPACITY, XDS_ESTATE. */
int xds_tape_write(struct xds_tape_writer *w, uint32_t kind, const void *data, uint32_t len);
/* n records of len bytes each that lie in a row, published together (in parts of an eighth of the tape).
 * 1, XDS_ECAPACITY, XDS_ESTATE. */
int xds_tape_write_many(struct xds_tape_writer *w, uint32_t kind, const void *data, uint32_t len, size_t n);
/* No more will come. */
void xds_tape_close(struct xds_tape *t);

/* Become a reader, in a slot that the caller chose (NULL: unseen). Returns 0. */
int xds_tape_attach_reader(struct xds_tape_reader *r, struct xds_tape *t, struct xds_tape_slot *slot,
                           enum xds_tape_from from);
/* Copy as many whole records as wait and fit, with their headers, each at a multiple of 8. Returns bytes,
 * 0 none now, -EPIPE none and the writer has closed, XDS_ECAPACITY: the next is larger than cap,
 * XDS_EMALFORMED: this is no tape any more. *n: records, r->lost tells what was lost before them. */
int64_t xds_tape_read(struct xds_tape_reader *r, void *to, uint64_t cap, uint64_t *n);
/* xds_tape_read() into r->room. Returns the number of records, XDS_ESTATE where there is no room, else as that. */
int64_t xds_tape_next(struct xds_tape_reader *r);
/* Sleep until something waits, for at most ns. 1 something does (or the writer has closed), 0 not. */
int xds_tape_wait(struct xds_tape_reader *r, int64_t ns);

#endif
