/* phc.h: one reading of a NIC's own clock (/dev/ptpN) beside CLOCK_TAI, for a mapping between the two.
 *
 * The mapping is a struct xds_clock whose counter is the NIC's clock in ns (rate 2^48): set it from a sample,
 * discipline it with further ones, and ask xds_clock_map() for a stamp. Set-up and housekeeping, never in a turn:
 * a reading is a system call that waits for the card, some microseconds.
 */
#ifndef XDS_PHC_H
#define XDS_PHC_H

#include <stdint.h>

enum xds_phc_how {
    XDS_PHC_PRECISE = 1,  /* both clocks latched by hardware (PTP_SYS_OFFSET_PRECISE)          */
    XDS_PHC_EXTENDED = 2, /* the system's just before and after the card's register was read   */
    XDS_PHC_PLAIN = 3,    /* the same around the whole call of the driver (PTP_SYS_OFFSET)     */
};

struct xds_phc_sample {
    int64_t device_ns; /* of the NIC's clock                                             */
    int64_t tai_ns;    /* CLOCK_TAI at the same moment                                   */
    int64_t spread_ns; /* between the two readings of the system's around it; 0: precise */
    uint32_t how;      /* enum xds_phc_how: the best that the driver has                 */
    uint32_t pad;
};

/* How a mapping does, in words that other processes may read. Of ahead and behind, fast and slow one is 0. */
struct xds_phc_stats {
    uint64_t ahead_ns, behind_ns;        /* the NIC's clock, of CLOCK_TAI: no fault, it is mapped   */
    uint64_t error_ns, error_max_ns;     /* of the mapping at the last comparison; the largest      */
    uint64_t fast_ppb, slow_ppb;         /* the NIC's clock's rate                                  */
    uint64_t spread_ns;                  /* how well the last comparison is known                   */
    uint64_t comparisons, steps, failed; /* steps: one of the clocks was set; failed: no answer     */
    uint64_t last_ns;                    /* CLOCK_TAI of the last comparison                        */
};

/* fd: of /dev/ptpN, open for reading. 0; -EOPNOTSUPP: no such clock; -errno. */
int xds_phc_sample(int fd, struct xds_phc_sample *out);

#endif
