/* privilege.h: what a process may keep. Control plane; see ports/privilege.c. */
#ifndef XDS_PRIVILEGE_H
#define XDS_PRIVILEGE_H

#include <stdint.h>

/* Capabilities of this thread that are permitted, one bit each (linux/capability.h). */
uint64_t xds_privilege_permitted(void);
/* Keep these capabilities only, over exec too (they become ambient), without supplementary groups and
 * with no-new-privileges. Call it before there are threads, and exec: a thread keeps what it has.
 * Returns 0, -EPERM some of them are not permitted or groups cannot be dropped, -errno. */
int xds_privilege_keep(uint64_t capabilities);

#endif
