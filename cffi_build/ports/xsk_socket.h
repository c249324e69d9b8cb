/* xsk_socket.h: one AF_XDP socket: its UMEM, its rings, its binding. The system calls of setting up, no
 * policy; rings come as libxdp's structs, so its inline helpers work on them.
 *
 * Order: open, register a UMEM or none (its own or a shared one), rings, bind. Close unmaps the rings and
 * closes the socket; it is calm on a socket that was never opened (all zero but fd -1).
 */
#ifndef XDSI_XSK_SOCKET_H
#define XDSI_XSK_SOCKET_H

#include "ports/xsk_uapi.h"

#include <stddef.h>
#include <stdint.h>
#include <xdp/xsk.h>

enum { XDSI_RING_RX, XDSI_RING_TX, XDSI_RING_FILL, XDSI_RING_COMPLETION, XDSI_RINGS };

struct xdsi_socket {
    int fd;
    int given; /* it came from another process: its rings have their sizes already */
    struct {
        void *at;
        size_t len;
    } map[XDSI_RINGS];
};

struct xdsi_umem_shape {
    void *area; /* page aligned */
    uint64_t len;
    uint32_t chunk_size, headroom, flags, tx_metadata_len;
};

/* Each returns 0 or -errno. */
int xdsi_socket_open(struct xdsi_socket *s);
/* fd: given, of a socket that is set up. Its rings are mapped by the calls below, at their present indices. */
void xdsi_socket_adopt(struct xdsi_socket *s, int fd);
int xdsi_socket_umem(const struct xdsi_socket *s, const struct xdsi_umem_shape *shape);
/* count: descriptors, a power of two. */
int xdsi_socket_producer(struct xdsi_socket *s, int which, uint32_t count, struct xsk_ring_prod *out);
int xdsi_socket_consumer(struct xdsi_socket *s, int which, uint32_t count, struct xsk_ring_cons *out);
/* Descriptors that one kick may take in copy mode, at most the TX ring's size. -ENOPROTOOPT: before Linux 6.17. */
int xdsi_socket_tx_budget(const struct xdsi_socket *s, uint32_t descriptors);
/* shared_fd: a bound socket whose UMEM this one uses, -1 none; flags are the first one's then. */
int xdsi_socket_bind(const struct xdsi_socket *s, uint32_t ifindex, uint32_t queue, uint16_t flags,
                     int shared_fd);
void xdsi_socket_close(struct xdsi_socket *s);

#endif
