/* privilege.c: drop every capability but some, for good.
 *
 * Order matters: the bounding set and securebits need CAP_SETPCAP, so they go first and the sets
 * themselves last. A process that lacks CAP_SETPCAP (a service manager has limited it already) cannot
 * shrink its bounding set, and with no-new-privileges need not: no exec gives it more.
 */
#include "xds/privilege.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CAPABILITIES 64

static int get_sets(struct __user_cap_data_struct sets[2])
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    return syscall(SYS_capget, &head, sets) ? -errno : 0;
}

static int set_sets(uint64_t permitted, uint64_t inheritable)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[2];
    for (int i = 0; i < 2; i++) {
        sets[i].permitted = sets[i].effective = (uint32_t)(permitted >> (32 * i));
        sets[i].inheritable = (uint32_t)(inheritable >> (32 * i));
    }
    return syscall(SYS_capset, &head, sets) ? -errno : 0;
}

uint64_t xds_privilege_permitted(void)
{
    struct __user_cap_data_struct sets[2] = {{0}};
    return get_sets(sets) ? 0 : sets[0].permitted | (uint64_t)sets[1].permitted << 32;
}

static int drop_groups(void)
{
    if (setgroups(0, NULL) == 0)
        return 0;
    return errno == EPERM && getgroups(0, NULL) == 0 ? 0 : -errno;
}

static int drop_bounds(uint64_t keep)
{
    for (unsigned long c = 0; c < CAPABILITIES; c++) {
        if (keep >> c & 1 || prctl(PR_CAPBSET_READ, c, 0, 0, 0) != 1)
            continue;
        if (prctl(PR_CAPBSET_DROP, c, 0, 0, 0))
            return -errno;
    }
    /* To be uid 0 gives nothing at exec. */
    return prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED, 0, 0, 0) ? -errno : 0;
}

int xds_privilege_keep(uint64_t capabilities)
{
    uint64_t have = xds_privilege_permitted();
    int code;

    if ((have & capabilities) != capabilities)
        return -EPERM;
    if ((code = drop_groups()))
        return code;
    if (have >> CAP_SETPCAP & 1 && (code = drop_bounds(capabilities)))
        return code;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
        return -errno;
    if ((code = set_sets(capabilities, capabilities)))
        return code;
    for (unsigned long c = 0; c < CAPABILITIES; c++)
        if (capabilities >> c & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, c, 0, 0))
            return -errno;
    return 0;
}
