/* xsk_uapi.h: what the kernel offers to AF_XDP sockets and Debian 12's headers (Linux 6.1) do not name.
 *
 * The one place for such constants: everything of ours includes this, not <linux/if_xdp.h>. Numbers and
 * layouts are those of the kernel's include/uapi/linux/if_xdp.h and asm-generic/socket.h. The table of the
 * least kernel for each feature is data: Python asks it before it opens, README.md shows it, and a test
 * compares the two.
 */
#ifndef XDSI_XSK_UAPI_H
#define XDSI_XSK_UAPI_H

#include <linux/if_xdp.h>
#include <stdint.h>
#include <sys/socket.h>

/*  enum xds_xsk_feature    name              since    what needs it                                      */
#define XDSI_XSK_FEATURES(X)                                                                                 \
    X(XDS_XSK_NEEDS_WAKEUP, "need_wakeup", 5, 4, "XDP_USE_NEED_WAKEUP: kicks only when the driver asks")     \
    X(XDS_XSK_NEEDS_UNALIGNED, "unaligned", 5, 4, "XDP_UMEM_UNALIGNED_CHUNK_FLAG: chunks of any size")       \
    X(XDS_XSK_NEEDS_SHARED, "shared", 5, 10, "XDP_SHARED_UMEM over queues and interfaces")                   \
    X(XDS_XSK_NEEDS_BUSY_POLL, "busy_poll", 5, 11, "SO_PREFER_BUSY_POLL, SO_BUSY_POLL_BUDGET")               \
    X(XDS_XSK_NEEDS_RX_METADATA, "rx_metadata", 6, 3, "kfuncs of a device-bound program")                    \
    X(XDS_XSK_NEEDS_JUMBO, "jumbo", 6, 6, "XDP_USE_SG, XDP_PKT_CONTD: a frame over several chunks")          \
    X(XDS_XSK_NEEDS_TX_METADATA, "tx_metadata", 6, 8, "XDP_TX_METADATA: checksum, time stamp")               \
    X(XDS_XSK_NEEDS_LAUNCH_TIME, "launch_time", 6, 15, "XDP_TXMD_FLAGS_LAUNCH_TIME: when a frame leaves")    \
    X(XDS_XSK_NEEDS_TX_BUDGET, "tx_budget", 6, 17, "XDP_MAX_TX_SKB_BUDGET: descriptors a kick may take")     \
    X(XDS_XSK_NEEDS_LIVE, "tx_live", 5, 18, "BPF_F_TEST_XDP_LIVE_FRAMES: bursts without an skb")

#ifndef SOL_XDP
#define SOL_XDP 283
#endif
#ifndef SO_INCOMING_NAPI_ID
#define SO_INCOMING_NAPI_ID 56
#endif
#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69
#endif
#ifndef SO_BUSY_POLL_BUDGET
#define SO_BUSY_POLL_BUDGET 70
#endif
#ifndef XDP_MAX_TX_SKB_BUDGET
#define XDP_MAX_TX_SKB_BUDGET 9 /* copy mode; from XDSI_TX_BUDGET_LEAST to the ring's size */
#endif
#define XDSI_TX_BUDGET_LEAST 32u /* what it is when nobody sets it, and the least that can be set */
#ifndef XDP_USE_SG
#define XDP_USE_SG (1 << 4)
#endif
#ifndef XDP_PKT_CONTD
#define XDP_PKT_CONTD (1 << 0) /* options of a descriptor: the frame goes on in the next one */
#endif
#ifndef XDP_UMEM_TX_SW_CSUM
#define XDP_UMEM_TX_SW_CSUM (1 << 1) /* copy mode computes the checksum itself */
#endif
#ifndef XDP_UMEM_TX_METADATA_LEN
#define XDP_UMEM_TX_METADATA_LEN (1 << 2) /* Linux 6.11; before, the length alone said it */
#endif
#ifndef XDP_TX_METADATA
#define XDP_TX_METADATA (1 << 1) /* options of a descriptor: metadata lies before it */
#endif

/* struct xdp_umem_reg as of Linux 6.8. The kernel reads as much of it as it knows. */
struct xdsi_umem_reg {
    uint64_t addr, len;
    uint32_t chunk_size, headroom, flags, tx_metadata_len;
};

#endif
