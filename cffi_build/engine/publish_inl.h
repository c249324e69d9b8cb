/* publish_inl.h: what publish.c (turns, commands), publish_streams.c (TCP) and publish_sessions.c (what speaks over
 * it) share. */
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

#define XDSI_STREAM_ENDED                                                                                    \
    (XDS_STACK_CLOSED | XDS_STACK_RESET | XDS_STACK_REFUSED | XDS_STACK_TIMEOUT | XDS_STACK_UNREACHABLE)

void xdsi_publish_stream(struct xds_publisher *p, const struct xds_publish_stream *news, const uint8_t *data,
                         int64_t now);

/* publish_sessions.c. The session of a connection, NULL: it has none. */
struct xdsi_session;
struct xdsi_session *xdsi_session_at(struct xds_publisher *p, uint32_t port, uint32_t connection);
/* May a connection be opened with this profile (0: none) now? Then, when it is being opened, take() its place. */
enum xds_command_refusal xdsi_session_check(const struct xds_publisher *p, uint32_t number);
void xdsi_session_take(struct xds_publisher *p, uint32_t number, uint32_t port, uint32_t connection);
/* An event of its connection; one that ends it ends the session, too. */
void xdsi_session_news(struct xds_publisher *p, struct xdsi_session *s, const struct xds_stream *news);
/* Write, close, reset. False: the session is gone, and what follows is its connection's alone. */
bool xdsi_session_command(struct xds_publisher *p, struct xds_engine *e, struct xdsi_session *s,
                          const struct xds_command *c, const uint8_t *data, int64_t now,
                          enum xds_command_refusal *refusal);
/* Timers and counters; p->sessions is there. */
void xdsi_sessions_turn(struct xds_publisher *p, struct xds_engine *e, int64_t now);

#endif
