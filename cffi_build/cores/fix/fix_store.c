/* fix_store.c: application messages held for resending: the newest that fit, in order of their numbers. */
#include "fix_int.h"

void xdsi_fix_store_clear(struct xdsi_fix_store *s)
{
    s->first = s->count = s->at = 0;
}

static struct xdsi_fix_held *entry(const struct xdsi_fix_store *s, uint32_t i)
{
    const uint32_t at = s->first + i;
    return &s->held[at >= s->cap ? at - s->cap : at];
}

static void forget(struct xdsi_fix_store *s)
{
    s->first = s->first + 1 == s->cap ? 0 : s->first + 1;
    s->count--;
}

/* Entries lie in the bytes in order, from the oldest on, once round at most: whoever overlaps [at, at + len) is
 * among the oldest. */
uint32_t xdsi_fix_store_put(struct xdsi_fix_store *s, uint64_t seq, int64_t now, const uint8_t *data,
                            uint32_t len)
{
    uint32_t gone = 0;

    if (len > s->size)
        return 1; /* longer than the store: it alone is not held */
    if (s->size - s->at < len) {
        for (; s->count && entry(s, 0)->at >= s->at;
             gone++) /* what lies up to the end would be passed over */
            forget(s);
        s->at = 0;
    }
    if (s->count == s->cap)
        forget(s), gone++;
    while (s->count && entry(s, 0)->at < s->at + len && s->at < entry(s, 0)->at + entry(s, 0)->len)
        forget(s), gone++;
    memcpy(s->bytes + s->at, data, len);
    s->count++;
    *entry(s, s->count - 1) = (struct xdsi_fix_held){.seq = seq, .sent_ns = now, .at = s->at, .len = len};
    s->at += len;
    return gone;
}

const struct xdsi_fix_held *xdsi_fix_store_at(const struct xdsi_fix_store *s, uint64_t seq)
{
    uint32_t low = 0, high = s->count;

    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (entry(s, middle)->seq < seq)
            low = middle + 1;
        else
            high = middle;
    }
    return low < s->count ? entry(s, low) : NULL;
}
