/* nic_time_inl.h: a NIC's stamp in our time line. */
#ifndef XDS_NIC_TIME_INL_H
#define XDS_NIC_TIME_INL_H

#include <stddef.h>

#include "xds/clock.h"

#define XDSI_NIC_LATE_NS                                                                                     \
    60000000000ll /* a packet that is older was not stamped by the clock that is mapped */
#define XDSI_NIC_EARLY_NS                                                                                    \
    1000000000ll /* and one from so far ahead neither                                  */

/* CLOCK_TAI ns of a stamp of the NIC's own clock; 0: it cannot be told, or is nowhere near `near_ns`. */
static inline int64_t xdsi_nic_time(const struct xds_clock_face *face, int64_t device_ns, int64_t near_ns)
{
    const int64_t ns = face ? xds_clock_face_map(face, (uint64_t)device_ns) : 0;
    return ns > near_ns - XDSI_NIC_LATE_NS && ns < near_ns + XDSI_NIC_EARLY_NS ? ns : 0;
}

#endif
