/* segments.c: `tcp-segment`: what a small segment in order costs, and the ACK that it makes, from memory.
 *
 * Two stacks in one process. The sender writes 64 bytes at a time, so that frames lie ready, a batch of them;
 * then the receiver takes each frame and says what it has to say, which is timed; then the sender takes the
 * ACKs. The functions are those of the product as it is built: Python hands their addresses over.
 */
#include "bench.h"
#include "xds/stack.h"

#define BATCH_MAX 512
#define ROOM      256
#define LONG      1536 /* of a frame of bench_sends(), of which there are fewer */

struct bench_end {
    struct xds_stack *stack;
    int32_t id, pad;
};

struct bench_segments {
    int (*frame)(struct xds_stack *, const struct xds_frame *, struct xds_dgram *, int64_t);
    int (*output)(struct xds_stack *, struct xds_frame *, int64_t);
    int (*event)(struct xds_stack *, struct xds_stack_event *);
    int (*write)(struct xds_stack *, int, const uint8_t *, uint32_t);
    int (*read)(struct xds_stack *, int, uint8_t *, uint32_t);
    struct bench_end from, to;
    int64_t now;                   /* ns, virtual */
    uint32_t batch, rounds, bytes; /* bytes: of payload */
    uint32_t whole;                /* 1: the receiver also learns of it and reads it, each time */
    uint32_t *samples;             /* a round: picoseconds a segment */
    uint64_t segments, acks;       /* that were taken; that came back */
    int (*send)(struct xds_stack *, int, struct xds_tcp_message *, uint32_t, const uint8_t *, uint32_t);
    struct xds_tcp_message
        *message; /* bench_sends(): written with four bytes changed; NULL: as it is, by write() */
};

static uint8_t data_frames[BATCH_MAX * ROOM], ack_frames[BATCH_MAX][ROOM];
static uint32_t data_len[BATCH_MAX], ack_len[BATCH_MAX];

/* The sender's frames of one batch. */
static int prepare(struct bench_segments *b)
{
    static const uint8_t payload[ROOM];

    for (uint32_t i = 0; i < b->batch; i++) {
        struct xds_frame f = {.data = data_frames + i * ROOM, .len = ROOM};
        if (b->write(b->from.stack, b->from.id, payload, b->bytes) != (int)b->bytes ||
            b->output(b->from.stack, &f, b->now) <= 0)
            return -1;
        data_len[i] = f.len;
    }
    return 0;
}

static uint64_t take(struct bench_segments *b, uint32_t room)
{
    struct xds_dgram unused;
    struct xds_stack_event event;
    uint8_t bytes[ROOM];
    const uint64_t begin = bench_ticks();

    for (uint32_t i = 0; i < b->batch; i++) {
        const struct xds_frame in = {.data = data_frames + i * room, .len = data_len[i]};
        struct xds_frame out = {.data = ack_frames[i], .len = ROOM};
        b->now += 1000;
        b->frame(b->to.stack, &in, &unused, b->now);
        if (b->whole && b->event(b->to.stack, &event))
            b->read(b->to.stack, b->to.id, bytes, sizeof bytes);
        ack_len[i] = b->output(b->to.stack, &out, b->now) > 0 ? out.len : 0;
    }
    return bench_ticks_end() - begin;
}

/* What was taken is read, and the sender learns that it was. */
static void settle(struct bench_segments *b)
{
    static uint8_t bytes[65536];
    struct xds_stack_event event;
    struct xds_dgram unused;
    struct xds_frame f = {.data = ack_frames[0], .len = ROOM};

    for (uint32_t i = 0; i < b->batch; i++) {
        const struct xds_frame in = {.data = ack_frames[i], .len = ack_len[i]};
        b->acks += ack_len[i] > 0;
        if (ack_len[i])
            b->frame(b->from.stack, &in, &unused, b->now);
    }
    while (b->event(b->to.stack, &event) || b->event(b->from.stack, &event))
        ;
    b->read(b->to.stack, b->to.id, bytes, sizeof bytes);
    while (b->output(b->to.stack, &f, b->now) > 0) { /* the window has grown */
        b->frame(b->from.stack, &f, &unused, b->now);
        f.len = ROOM;
    }
}

/* What the sender does, from its message to a frame that is ready to leave. */
static int64_t say(struct bench_segments *b)
{
    static uint8_t payload[LONG];
    const uint64_t begin = bench_ticks();

    for (uint32_t i = 0; i < b->batch; i++) {
        struct xds_frame f = {.data = data_frames + i * LONG, .len = LONG};
        int done;
        if (b->message) {
            done = b->send(b->from.stack, b->from.id, b->message, 8, (const uint8_t *)&i, sizeof i);
        } else {
            memcpy(payload + 8, &i, sizeof i);
            done = b->write(b->from.stack, b->from.id, payload, b->bytes);
        }
        if (done != (int)b->bytes || b->output(b->from.stack, &f, b->now) <= 0)
            return -1;
        data_len[i] = f.len;
    }
    return (int64_t)(bench_ticks_end() - begin);
}

/* A message sent, each a segment of its own. As bench_segments(). */
int bench_sends(struct bench_segments *b)
{
    const double ns_per_tick = bench_calibrate();

    if (b->batch > BATCH_MAX * ROOM / LONG || b->bytes > LONG - 128)
        return -1;
    for (uint32_t round = 0; round < b->rounds; round++) {
        const int64_t ticks = say(b);
        if (ticks < 0)
            return -1;
        b->samples[round] = (uint32_t)((double)ticks * ns_per_tick * 1000 / b->batch);
        b->segments += b->batch;
        take(b, LONG);
        settle(b);
    }
    return 0;
}

/* 0; -1: a frame could not be made, so the connection is not what it should be. */
int bench_segments(struct bench_segments *b)
{
    const double ns_per_tick = bench_calibrate();

    if (b->batch > BATCH_MAX || b->bytes > ROOM - 128)
        return -1;
    for (uint32_t round = 0; round < b->rounds; round++) {
        if (prepare(b))
            return -1;
        const double ticks = (double)take(b, ROOM);
        b->samples[round] = (uint32_t)(ticks * ns_per_tick * 1000 / b->batch);
        b->segments += b->batch;
        settle(b);
    }
    return 0;
}
