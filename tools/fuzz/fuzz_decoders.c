/* fuzz_decoders.c: libFuzzer over every decoder of this build.
 *
 * The first byte of an input picks the decoder, the second how many messages are announced, the third
 * the block's flags; the rest is the block, decoded twice into one memory so that what the first pass
 * learned (instruments, sequences) is met by the second. Besides what the sanitizers see, it holds:
 * messages = by type + unreadable; nothing written beyond the bounds that the decoder promises; the
 * second pass steps over as many messages as the first.
 */
#include "cores/feed/symtab.h"

#include <stdlib.h>
#include <string.h>

#define MAX_BYTES   (1 << 16)
#define INSTRUMENTS 16

static void check(int holds)
{
    if (!holds)
        abort();
}

static void check_stats(const struct xds_decoder *d, const void *mem)
{
    struct xds_decoder_stats st;
    xds_decoder_stats(d, mem, &st);
    uint64_t read = st.reasons[XDS_DECODE_SHORT] + st.reasons[XDS_DECODE_UNKNOWN_TYPE] +
                    st.reasons[XDS_DECODE_UNSUPPORTED];
    for (unsigned i = 0; i < d->n_types; i++)
        read += st.by_type[i];
    check(read == st.messages);
    check(st.reasons[XDS_DECODE_CAPACITY] == 0);
    check(xds_decoder_instruments(d, mem) <= INSTRUMENTS);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3 || size > MAX_BYTES)
        return 0;
    const struct xds_decoder *d = xds_decoder_at(data[0] % xds_decoder_count());
    const struct xds_decoder_config cfg = {.max_instruments = INSTRUMENTS};
    uint32_t len = (uint32_t)(size - 3);
    uint8_t *exact = malloc(len ? len : 1); /* its own allocation: a read past the end is seen */
    uint32_t cap_u = 1 + (uint32_t)((uint64_t)len * d->max_updates_per_byte_q8 / 256);
    uint32_t cap_m = 1 + (uint32_t)((uint64_t)len * d->max_messages_per_byte_q8 / 256);
    struct xds_update *updates = malloc(cap_u * sizeof(*updates));
    struct xds_message *messages = malloc(cap_m * sizeof(*messages));
    void *mem = malloc(xds_decoder_size(d, &cfg));
    check(exact && updates && messages && mem && xds_decoder_init(d, mem, &cfg) == 0);
    memcpy(exact, data + 3, len);
    struct xds_block b = {.data = exact, .len = len, .flags = data[2], .seq = 1, .line = 1};
    b.count = data[1] & 0x80 ? 0xffff : data[1];
    int first = 0;
    for (int pass = 0; pass < 2; pass++) {
        struct xds_sink sink = {.updates = updates, .cap_updates = cap_u, .cap_messages = cap_m};
        sink.messages = pass ? NULL : messages;
        int n = xds_decoder_block(d, mem, &b, &sink);
        check(n >= 0 && (pass == 0 || n == first));
        check(pass || sink.n_messages == (uint32_t)n);
        first = n;
        for (uint32_t i = 0; i < sink.n_messages; i++)
            check(messages[i].data >= exact && messages[i].data + messages[i].len <= exact + len);
        check_stats(d, mem);
    }
    free(mem);
    free(messages);
    free(updates);
    free(exact);
    return 0;
}
