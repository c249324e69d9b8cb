/* version.h: the layout of everything in xds/; changes with any struct that crosses. */
#ifndef XDS_VERSION_H
#define XDS_VERSION_H

#define XDS_ABI_VERSION 1

int xds_abi_version(void);

#endif
