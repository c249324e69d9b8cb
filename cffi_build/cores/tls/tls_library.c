/* tls_library.c: load OpenSSL 3 when the first context asks for it.
 *
 * The library is never unloaded: it registers destructors with the process, and Python's own ssl may share it. */
#include "cores/tls/tls_library.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>

#define LIBRARY "libssl.so.3"

int xdsi_tls_library_load(struct xdsi_tls_library *lib, char *why, size_t cap)
{
    static const char *const names[] = {
#define NAME(name) #name,
        XDSI_TLS_CALLS(NAME)
#undef NAME
    };
    void **slot = (void **)lib; /* a table of pointers and nothing else: asserted below */
    _Static_assert(sizeof(*lib) == sizeof(names), "one pointer a name");

    void *so = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!so) {
        snprintf(why, cap, "TLS needs OpenSSL 3 (Debian: libssl3): %s", dlerror());
        return -ENOEXEC;
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        slot[i] = dlsym(so, names[i]); /* libcrypto's too: it hangs on libssl */
        if (!slot[i]) {
            snprintf(why, cap, "%s has no %s: it is no OpenSSL 3", LIBRARY, names[i]);
            return -ENOEXEC;
        }
    }
    if (lib->OpenSSL_version_num() >> 28 != 3) {
        snprintf(why, cap, "%s is OpenSSL %lx, not 3", LIBRARY, lib->OpenSSL_version_num());
        return -ENOEXEC;
    }
    return 0;
}
