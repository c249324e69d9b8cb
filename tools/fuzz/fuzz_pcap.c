/* fuzz_pcap.c: libFuzzer over the capture reader: a file of any bytes, every packing and format. It holds:
 * what is delivered is at most what the file's records say, every frame lies whole in memory that can be
 * read, and a reader that has ended stays ended. Each input runs with the smallest window, where records
 * lie across its edges, or with a larger one.
 */
#define _GNU_SOURCE
#include "xds/base.h"
#include "xds/pcap.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BURST    16
#define MAX_READ (1 << 22) /* bytes delivered: a few packed bytes may mean gigabytes */

static void check(int holds)
{
    if (!holds)
        abort();
}

static volatile uint8_t sink;

static void read_all(struct xds_link *l)
{
    struct xds_frame f[BURST];
    uint64_t frames = 0, bytes = 0;
    struct xds_pcap_info info;
    int n;

    while ((n = xds_link_rx(l, f, BURST, XDS_NEVER)) > 0 && bytes < MAX_READ) {
        check(n <= BURST);
        for (int i = 0; i < n; i++) {
            for (uint32_t at = 0; at < f[i].len; at++)
                sink ^= f[i].data[at];
            bytes += f[i].len + 16;
        }
        frames += (unsigned)n;
        xds_link_release(l);
    }
    xds_pcap_info(l, &info);
    check(info.blocks >= frames);
    check(info.interfaces <= XDS_PCAP_INTERFACES_MAX);
    if (n < 0)
        check(xds_link_rx(l, f, BURST, XDS_NEVER) == n && info.ended == n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    const struct xds_pcap_config g = {.window = data[0] & 1 ? 4096 : 1 << 16,
                                      .flags = data[0] & 2 ? XDS_PCAP_ALL_TYPES : 0};
    const size_t bytes = xds_pcap_size(&g);
    void *mem = aligned_alloc(64, (bytes + 63) / 64 * 64);
    struct xds_link *l = NULL;
    int fd = memfd_create("fuzz", MFD_CLOEXEC);

    check(mem && fd >= 0);
    check(write(fd, data + 1, size - 1) == (ssize_t)(size - 1) && lseek(fd, 0, SEEK_SET) == 0);
    memset(mem, 0, bytes);
    if (!xds_pcap_open(mem, &g, fd, &l)) {
        read_all(l);
        xds_link_close(l);
    }
    close(fd);
    free(mem);
    return 0;
}
