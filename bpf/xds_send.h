/* xds_send.h: the contract between xds_send.bpf.c and the port that sends by it (cffi_build/ports/xsk_live.c). */
#ifndef XDS_SEND_H
#define XDS_SEND_H

#include <linux/types.h>

#define XDS_SEND_FRAMES  128    /* the most that one run sends: half of veth's ring                */
#define XDS_SEND_BYTES   262144 /* room for them; where they are longer than 2,048, a run has fewer */
#define XDS_SEND_LEAST   14     /* bytes of a frame, see bpf_xdp_adjust_tail                        */
#define XDS_SEND_LONGEST 3456   /* of 4,096: headroom before, the kernel's skb_shared_info behind   */

struct xds_send_slot {
    __u32 at; /* its first byte in `bytes` */
    __u32 len;
};

struct xds_send_burst { /* its .bss, mapped by the port */
    __u32 count;        /* frames to send, of the slots from 0 on; the port's                           */
    __u32 taken;        /* of them, in order: have left. The port sets it to 0                          */
    __u32 skip;         /* clones still to come that carry nothing; the program's                       */
    __u32 pad;
    struct xds_send_slot slot[XDS_SEND_FRAMES];
    __u8 bytes[XDS_SEND_BYTES + 4096];
};

#endif
