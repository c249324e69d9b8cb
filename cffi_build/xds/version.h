/* version.h: the layout of everything in xds/; changes with any struct that crosses. */
#ifndef XDS_VERSION_H
#define XDS_VERSION_H

#define XDS_ABI_VERSION 1

/* What the core was built with: XDS_ABI_VERSION of its headers. */
int xds_abi_version(void);

#endif
