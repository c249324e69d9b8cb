/* base.h: the words that every layer shares: return codes, the clock's bounds, one event.
 *
 * Headers in xds/ are read twice: by the C compiler and, stripped of preprocessor lines, by cffi.
 * So they hold only types, enums, integer #defines and prototypes (see cffi_build/build.py).
 */
#ifndef XDS_BASE_H
#define XDS_BASE_H

#include <stddef.h>
#include <stdint.h>

/* "Never": the deadline of something with nothing to wait for, in ns of CLOCK_TAI. */
#define XDS_NEVER 0x7fffffffffffffff

/* Returns: >= 0 success or a count; -errno from the system; at or below -4097 a fault of the
 * protocol or of the caller. Nothing to do is 0, never an error. */
#define XDS_ETRUNC     -4097 /* the bytes end before their own header says they do             */
#define XDS_EMALFORMED -4098 /* a length, type or version that the specification does not allow */
#define XDS_EFOREIGN   -4099 /* well formed, but not ours: other address, session or channel   */
#define XDS_ECAPACITY  -4100 /* a bound of ours is reached; the named counter says which        */
#define XDS_ECONFIG    -4101 /* the configuration contradicts itself                           */
#define XDS_ESTATE     -4102 /* not allowed in this state: a bug of the caller                 */

/* One thing that happened outside the stream of updates; a batch carries a list of them. */
struct xds_event {
    int64_t ns;       /* CLOCK_TAI, when it was noticed                    */
    uint64_t first;   /* meaning by kind: first sequence of a gap, ...     */
    uint64_t count;   /* meaning by kind: length of the gap, ...           */
    uint32_t kind;    /* enum xds_event_kind                               */
    uint16_t feed;    /* index of the feed in its engine                   */
    uint16_t channel; /* index of the channel in its feed                  */
};

enum xds_event_kind {
    XDS_EVENT_NONE = 0,
    XDS_EVENT_GAP_FOUND = 1,  /* first, count: in sequence units, missing on every line   */
    XDS_EVENT_GAP_ASKED = 2,  /* first, count: one retransmission request went out        */
    XDS_EVENT_GAP_FILLED = 3, /* first, count: came after all, from a line or by request  */
    XDS_EVENT_GAP_LOST = 4,   /* first, count: given up; the books behind it are stale    */
    XDS_EVENT_RESTART = 5,    /* first: new sequence, count: sequence before the restart  */
    XDS_EVENT_SESSION = 6,    /* another session name began; first: its first sequence    */
    XDS_EVENT_END = 7,        /* end of session; first: next sequence, had it gone on     */
    XDS_EVENT_JOINED = 8,     /* first packet seen on the channel; first: its sequence    */
    XDS_EVENT_RESET = 9,      /* the venue reset the channel: every book behind it clears */
};

#endif
