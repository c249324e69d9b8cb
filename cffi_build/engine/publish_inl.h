/* publish_inl.h: what publish.c (turns, commands) and publish_streams.c (TCP) share. */
#ifndef XDS_PUBLISH_INL_H
#define XDS_PUBLISH_INL_H

#include "engine_inl.h"
#include "ground/tape_inl.h"
#include "xds/publish.h"

/* Bytes that a record may have. */
static inline uint32_t xdsi_publish_most(const struct xds_publisher *p)
{
    return p->tape->bytes / 8 < XDS_PUBLISH_BYTES ? (uint32_t)(p->tape->bytes / 8) : XDS_PUBLISH_BYTES;
}

/* Room for a record's head, filled, and so many bytes behind it; NULL: none. Then end(). */
struct xds_publish_head *xdsi_publish_begin(struct xds_publisher *p, const struct xds_batch *b,
                                            uint32_t data);
void xdsi_publish_end(struct xds_publisher *p, enum xds_publish_kind kind, uint32_t data);

/* A datagram that a command asks for: XDS_COMMAND_SEND or, its address before it, XDS_COMMAND_SEND6. */
enum xds_command_refusal xdsi_publish_send(struct xds_engine *e, const struct xds_command *c,
                                           const uint8_t *data);

/* A command about a connection, with its data; *connection: which it was about, or became. */
enum xds_command_refusal xdsi_publish_command(struct xds_publisher *p, struct xds_engine *e,
                                              const struct xds_command *c, const uint8_t *data,
                                              uint32_t *connection);

#endif
