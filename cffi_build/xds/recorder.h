/* recorder.h: a tap on every port of an engine, into a pcapng file that replays bit for bit.
 *
 * Interface k of the file is port k of the engine (LINKTYPE_ETHERNET; datagrams of a kernel socket get
 * the headers they had). The interface after them, "turns" (LINKTYPE_USER0), carries one block before
 * the frames of each turn: its number, now, and how many frames of each port follow. Timers that fired
 * in a turn without frames have a block too, so a replay runs the same steps at the same times.
 *
 * The engine's side copies into a private ring and never waits; a thread of ours writes the file. What
 * did not fit is counted: then the recording is incomplete and says so (record_lost).
 */
#ifndef XDS_RECORDER_H
#define XDS_RECORDER_H

#include "base.h"
#include "pcap.h"
#include "ring.h"

#define XDS_TURN_MAGIC 0x4e525554 /* "TURN", little-endian */

struct xds_recorder;
size_t xds_recorder_size(void);
/* ring: kept, the private ring between engine and thread. w: kept, the file with ports + 1 interfaces. */
int xds_recorder_init(void *mem, struct xds_ring *ring, struct xds_pcap_writer *w, uint32_t ports);
int xds_recorder_start(struct xds_recorder *r, int cpu); /* cpu -1: anywhere. -errno of the thread */
/* Drain the ring, end the thread. Returns 0, -errno of the first failed write, XDS_ECAPACITY: frames lost. */
int xds_recorder_stop(struct xds_recorder *r);
uint64_t xds_recorder_written(const struct xds_recorder *r);
uint64_t xds_recorder_lost(const struct xds_recorder *r);

#endif
