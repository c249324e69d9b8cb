/* link.h: a link moves frames. AF_XDP queues, captures and memory pipes all answer these calls, so
 * what runs over one runs over each. Everything above sees only this file.
 *
 * Receive is a lease: frames of one xds_link_rx() stay valid until xds_link_release(). Send is
 * reserve, fill, commit, flush; RX and TX frames come from disjoint pools.
 * received = delivered + the sum of the named reasons in xds_link_stats.
 */
#ifndef XDS_LINK_H
#define XDS_LINK_H

#include <stddef.h>
#include <stdint.h>

struct xds_frame {
    uint8_t *data;  /* first byte of the Ethernet header                                */
    int64_t rx_ns;  /* CLOCK_TAI ns of reception; 0 when the link has none               */
    uint64_t addr;  /* the link's own handle of the frame (UMEM address, index)          */
    uint32_t len;   /* bytes; on reserve: the room there is                              */
    uint16_t queue; /* receive queue, or interface number inside a capture               */
    uint16_t flags; /* enum xds_frame_flag                                               */
};

enum xds_frame_flag {
    XDS_FRAME_HW_STAMP = 1, /* rx_ns comes from the NIC; its own clock where the port has no mapping */
    XDS_FRAME_CUT = 2,      /* the capture holds fewer bytes than were on the wire       */
    XDS_FRAME_JOINED = 4,   /* it came in several buffers                                */
    XDS_FRAME_TX_META = 8,  /* to be sent with what xds_xsk_tx_meta() was filled with    */
    XDS_FRAME_HASH = 16,    /* xds_xsk_rx_hints() knows the NIC's hash                   */
    XDS_FRAME_VLAN = 32,    /* xds_xsk_rx_hints() knows the tag that the NIC took off    */
};

enum xds_link_flag {
    XDS_LINK_VIRTUAL_TIME = 1, /* now = the next frame's stamp (captures, simulator)     */
    XDS_LINK_READ_ONLY = 2,
};

struct xds_link_stats {
    uint64_t rx_frames, rx_bytes; /* handed to the caller                                */
    uint64_t tx_frames, tx_bytes; /* committed by the caller and accepted by the link    */
    uint64_t rx_polls, rx_polls_empty;
    uint64_t tx_kicks, tx_kicks_suppressed, tx_kicks_again; /* again: ENOBUFS/EAGAIN/EBUSY */
    uint64_t rx_wakeups; /* fill-ring wake-ups                                  */
    uint64_t tx_completed;
    uint64_t rx_dropped;    /* kernel: dropped for other reasons (XDP_STATISTICS)  */
    uint64_t rx_invalid;    /* kernel: invalid descriptors in the fill ring        */
    uint64_t rx_ring_full;  /* kernel: RX ring was full                            */
    uint64_t rx_fill_empty; /* kernel: fill ring was empty                         */
    uint64_t tx_invalid;    /* kernel: invalid TX descriptors                      */
    uint64_t tx_ring_empty;
    uint64_t rx_truncated;   /* captures: records cut short; rx_dropped: of other link types */
    uint64_t tx_no_frame;    /* reserve found no free TX frame                      */
    uint64_t tx_stamps_lost; /* time stamps of sent frames that nobody fetched in time */
    uint64_t tx_copied;      /* forwarded frames that had to be copied               */
    uint64_t tx_live;        /* of tx_frames: left as live XDP frames, in so many runs */
    uint64_t tx_live_runs;
    uint64_t tx_live_refused;    /* offered so and not taken: they went by the socket    */
    uint64_t rx_joined;          /* of rx_frames: came in several buffers, copied together */
    uint64_t rx_in_a_row;        /* of rx_frames: in several buffers that lie in a row  */
    uint64_t rx_chain_waits;     /* receives that left one in the ring: no free slab, or not whole yet */
    uint64_t rx_chain_long;      /* dropped: longer than the port was opened for     */
    uint64_t rx_chain_malformed; /* dropped: buffers without an end                  */
    uint64_t rx_nic_stamped;     /* of rx_frames: rx_ns is the NIC's stamp, mapped to CLOCK_TAI */
    uint64_t rx_nic_refused;     /* the NIC's stamp could not be mapped: rx_ns is the time of the call */
};

struct xds_link;

enum { XDS_LINK_NO_FD = -1 };

/* Take up to cap frames. Leased until xds_link_release(). Returns the count, 0 none,
 * -EPIPE the end of a capture was reached, -errno from the system. */
int xds_link_rx(struct xds_link *l, struct xds_frame *out, unsigned cap, int64_t now_ns);
/* Give back every frame of the rx calls since the last release. */
void xds_link_release(struct xds_link *l);
/* Reserve n frames for sending: out[i].data with out[i].len bytes of room. Returns how many. */
int xds_link_reserve(struct xds_link *l, struct xds_frame *out, unsigned n);
/* Send n reserved frames in this order (len = bytes filled); one with len 0 goes back unsent. Frames
 * not named stay the caller's. Returns how many will be sent; -EMSGSIZE, XDS_ESTATE: none was taken. */
int xds_link_commit(struct xds_link *l, const struct xds_frame *frames, unsigned n);
/* Kick what was committed, collect completions. Returns frames still on their way, or -errno. */
int xds_link_flush(struct xds_link *l, int64_t now_ns);
/* Stamp of the next frame on a virtual-time link, XDS_NEVER at its end or on a live link. */
int64_t xds_link_deadline(struct xds_link *l);
int xds_link_flags(const struct xds_link *l); /* enum xds_link_flag, or-ed */
/* What to poll() on: XDS_LINK_NO_FD none, or -errno. Several queues are joined when it is first asked for. */
int xds_link_fd(struct xds_link *l);
unsigned xds_link_mtu(const struct xds_link *l);
void xds_link_stats(struct xds_link *l, struct xds_link_stats *out);
void xds_link_close(struct xds_link *l); /* memory stays the caller's */

#endif
