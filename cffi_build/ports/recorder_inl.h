/* recorder_inl.h: the engine's side of the recorder, and the turn block's layout. */
#ifndef XDS_RECORDER_INL_H
#define XDS_RECORDER_INL_H

#include <stdbool.h>

#include "xds/dgram.h"
#include "xds/link.h"
#include "xds/recorder.h"

/* One block on the interface "turns", little-endian, before the frames of its turn. */
struct xdsi_turn_block {
    uint32_t magic;  /* XDS_TURN_MAGIC                         */
    uint32_t frames; /* of all ports, that follow              */
    int64_t now_ns;  /* CLOCK_TAI ns at the start of the turn  */
    uint64_t turn;
    uint32_t timers_wait; /* 1: a port had a backlog, so no timer fired in this turn */
    uint32_t pad;
};

_Static_assert(sizeof(struct xdsi_turn_block) == 32, "the layout of a file");

void xdsi_recorder_turn(struct xds_recorder *r, uint64_t turn, int64_t now_ns, uint32_t frames,
                        bool timers_wait);
void xdsi_recorder_frame(struct xds_recorder *r, unsigned port, const struct xds_frame *f);
void xdsi_recorder_dgram(struct xds_recorder *r, unsigned port, const struct xds_dgram *d);
/* 0, or XDS_EMALFORMED: not a turn block (another record on that interface). */
int xdsi_recorder_parse(const struct xds_frame *f, struct xdsi_turn_block *out);

#endif
