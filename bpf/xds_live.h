/* xds_live.h: the contract between xds_live.bpf.c and who runs it. */
#ifndef XDS_LIVE_H
#define XDS_LIVE_H

#include <linux/types.h>

struct xds_live_settings { /* its .rodata */
    __u64 gap_ps;          /* picoseconds between frames, 0: none                     */
    __u64 duration;        /* ns from the first frame                                 */
    __u64 mark;            /* or-ed to the number                                     */
    __u32 ifindex;         /* redirected to; 0: passed to the interface the run names */
    __u32 at;              /* where number and stamp go, bytes                        */
    __u64 rest;            /* sum of all else that the checksum before them is of, 0: there is none */
};

struct xds_live_state { /* its .bss */
    __u64 sent;
    __u64 first; /* CLOCK_MONOTONIC ns of frame 0 */
};

#endif
