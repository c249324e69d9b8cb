/* plugin.c: load a decoder that `xdpstack feed build` made (see xds/plugin.h). */
#include "xds/plugin.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>

int xds_decoder_load(const char *path, const struct xds_decoder **out, char *why, size_t cap)
{
    *out = NULL;
    void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!so) {
        snprintf(why, cap, "%s", dlerror());
        return -ENOEXEC;
    }
    const struct xds_decoder *(*entry)(void);
    *(void **)&entry = dlsym(so, "xds_decoder_entry"); /* POSIX's own way to spell this cast */
    if (!entry) {
        snprintf(why, cap, "it has no xds_decoder_entry: not a decoder");
        dlclose(so);
        return XDS_EFOREIGN;
    }
    const struct xds_decoder *d = entry();
    if (d->abi != XDS_DECODER_ABI) {
        snprintf(why, cap, "made for decoder ABI %u, this build has %d: build it again", d->abi,
                 XDS_DECODER_ABI);
        dlclose(so);
        return XDS_ECONFIG;
    }
    *out = d;
    return 0;
}
