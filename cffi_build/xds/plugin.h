/* plugin.h: decoders that were built elsewhere (`xdpstack feed build`), loaded from a shared object.
 * Set-up only: system calls and allocation; never on the receive path. */
#ifndef XDS_PLUGIN_H
#define XDS_PLUGIN_H

#include "base.h"
#include "decode.h"

/* Load the decoder in the shared object at path. It stays loaded until the process ends, for engines
 * hold pointers into it. Returns 0; XDS_EFOREIGN: no xds_decoder_entry in it; XDS_ECONFIG: made for
 * another XDS_DECODER_ABI; -ENOEXEC: cannot be loaded. why (cap bytes) gets one sentence. */
int xds_decoder_load(const char *path, const struct xds_decoder **out, char *why, size_t cap);

#endif
