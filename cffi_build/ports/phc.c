/* phc.c: the three ways in which Linux compares a NIC's clock with its own, the best first. */
#include "xds/phc.h"

#include <errno.h>
#include <linux/ptp_clock.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#define TRIES 9 /* readings a sample; the narrowest counts */

static int64_t ns_of(const struct ptp_clock_time *t)
{
    return t->sec * 1000000000ll + t->nsec;
}

/* The kernel answers in CLOCK_REALTIME. */
static int64_t tai_offset(void)
{
    struct timespec tai, real;
    clock_gettime(CLOCK_TAI, &tai);
    clock_gettime(CLOCK_REALTIME, &real);
    const int64_t off = (tai.tv_sec - real.tv_sec) * 1000000000ll + tai.tv_nsec - real.tv_nsec;
    return (off + 500000000) / 1000000000 * 1000000000;
}

static void narrowest(struct xds_phc_sample *best, int64_t before, int64_t device, int64_t after)
{
    if (after < before || (best->how && after - before >= best->spread_ns))
        return; /* the system's clock was set in between, or it was narrower before */
    best->device_ns = device;
    best->tai_ns = before + (after - before) / 2;
    best->spread_ns = after - before;
    best->how = XDS_PHC_EXTENDED;
}

static int precise(int fd, struct xds_phc_sample *out)
{
    struct ptp_sys_offset_precise p;
    memset(&p, 0, sizeof p);
    if (ioctl(fd, PTP_SYS_OFFSET_PRECISE, &p) < 0)
        return -errno;
    out->device_ns = ns_of(&p.device);
    out->tai_ns = ns_of(&p.sys_realtime);
    out->how = XDS_PHC_PRECISE;
    return 0;
}

static int extended(int fd, struct xds_phc_sample *out)
{
    struct ptp_sys_offset_extended x;
    memset(&x, 0, sizeof x);
    x.n_samples = TRIES;
    if (ioctl(fd, PTP_SYS_OFFSET_EXTENDED, &x) < 0)
        return -errno;
    for (unsigned i = 0; i < x.n_samples && i < TRIES; i++)
        narrowest(out, ns_of(&x.ts[i][0]), ns_of(&x.ts[i][1]), ns_of(&x.ts[i][2]));
    return out->how ? 0 : -EAGAIN;
}

static int plain(int fd, struct xds_phc_sample *out)
{
    struct ptp_sys_offset s;
    memset(&s, 0, sizeof s);
    s.n_samples = TRIES;
    if (ioctl(fd, PTP_SYS_OFFSET, &s) < 0)
        return -errno;
    for (unsigned i = 0; i < TRIES; i++)
        narrowest(out, ns_of(&s.ts[2 * i]), ns_of(&s.ts[2 * i + 1]), ns_of(&s.ts[2 * i + 2]));
    if (!out->how)
        return -EAGAIN;
    out->how = XDS_PHC_PLAIN;
    return 0;
}

int xds_phc_sample(int fd, struct xds_phc_sample *out)
{
    int (*const ways[])(int, struct xds_phc_sample *) = {precise, extended, plain};
    int rc = -EOPNOTSUPP;

    for (unsigned i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        memset(out, 0, sizeof *out);
        rc = ways[i](fd, out);
        if (rc == 0) {
            out->tai_ns += tai_offset();
            return 0;
        }
        if (rc != -EOPNOTSUPP && rc != -ENOTTY && rc != -EINVAL && rc != -EAGAIN)
            return rc;
    }
    return rc == -EAGAIN ? rc : -EOPNOTSUPP;
}
