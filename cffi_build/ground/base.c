/* base.c: what the build was made from. */
#include "xds/version.h"

int xds_abi_version(void)
{
    return XDS_ABI_VERSION;
}
