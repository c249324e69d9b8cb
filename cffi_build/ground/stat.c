/* stat.c: building a segment, and judging one that somebody else built. Pure. */
#include <string.h>

#include "ground/stat_inl.h"
#include "xds/base.h"

#define LINE 64u

static size_t round_line(size_t n)
{
    return (n + LINE - 1) & ~(size_t)(LINE - 1);
}

static struct xds_stat_entry *table(const struct xds_stat *s)
{
    return (struct xds_stat_entry *)((char *)s + s->header_bytes);
}

size_t xds_stat_size(uint32_t entries, uint32_t hists, uint32_t groups)
{
    /* Each group wastes less than a line; each word is 8 bytes. */
    return round_line(sizeof(struct xds_stat) + (size_t)entries * sizeof(struct xds_stat_entry)) +
           round_line((size_t)entries * sizeof(uint64_t)) + (size_t)groups * LINE +
           (size_t)hists * round_line(sizeof(struct xds_hist));
}

/* A name that fits with its NUL and is printable without a blank: it will be shown on terminals. */
static int sound_name(const char *name, size_t cap)
{
    const size_t len = strnlen(name, cap);
    for (size_t i = 0; i < len; i++)
        if (name[i] < 0x21 || name[i] > 0x7e)
            return 0;
    return len && len < cap;
}

static int copy_name(char *to, size_t cap, const char *from)
{
    if (!sound_name(from, cap))
        return XDS_ECONFIG;
    memset(to, 0, cap);
    memcpy(to, from, strlen(from));
    return 0;
}

int xds_stat_init(void *mem, size_t bytes, uint32_t cap_entries, const char *name, uint32_t pid,
                  uint64_t pid_start, int64_t now_ns)
{
    struct xds_stat *s = mem;
    const size_t first = round_line(sizeof(*s) + (size_t)cap_entries * sizeof(struct xds_stat_entry));
    if (!cap_entries || bytes < first || ((uintptr_t)mem & (LINE - 1)))
        return XDS_ECONFIG;
    memset(s, 0, sizeof(*s));
    const int rc = copy_name(s->name, sizeof(s->name), name);
    if (rc)
        return rc;
    s->version = XDS_STAT_VERSION;
    s->header_bytes = sizeof(*s);
    s->bytes = bytes;
    s->entry_bytes = sizeof(struct xds_stat_entry);
    s->cap_entries = cap_entries;
    s->pid = pid;
    s->pid_start = pid_start;
    s->created_ns = now_ns;
    s->used = first;
    __atomic_store_n(&s->magic, XDS_STAT_MAGIC, __ATOMIC_RELEASE);
    return 0;
}

static void *take(struct xds_stat *s, size_t bytes)
{
    const size_t need = round_line(bytes);
    if (need < bytes || need > s->bytes - s->used)
        return NULL;
    void *at = (char *)s + s->used;
    s->used += need;
    return at;
}

uint64_t *xds_stat_group(struct xds_stat *s, uint32_t n)
{
    return n ? take(s, (size_t)n * 8) : NULL;
}

static int add_entry(struct xds_stat *s, const void *value, const char *name, const char *unit, uint32_t kind,
                     uint32_t bytes)
{
    if (s->n_entries == s->cap_entries)
        return XDS_ECAPACITY;
    const uint64_t offset = (uint64_t)((const char *)value - (const char *)s);
    if ((const char *)value < (const char *)s || offset > s->used || bytes > s->used - offset || offset % 8)
        return XDS_ECONFIG;
    struct xds_stat_entry *e = table(s) + s->n_entries;
    if (copy_name(e->name, sizeof(e->name), name) || copy_name(e->unit, sizeof(e->unit), unit))
        return XDS_ECONFIG;
    e->kind = kind;
    e->bytes = bytes;
    e->offset = offset;
    __atomic_store_n(&s->n_entries, s->n_entries + 1, __ATOMIC_RELEASE);
    return 0;
}

int xds_stat_name(struct xds_stat *s, uint64_t *word, const char *name, const char *unit, uint32_t kind)
{
    if (kind != XDS_STAT_COUNTER && kind != XDS_STAT_GAUGE)
        return XDS_ECONFIG;
    return add_entry(s, word, name, unit, kind, 8);
}

uint64_t *xds_stat_counter(struct xds_stat *s, const char *name, const char *unit, uint32_t kind)
{
    const uint64_t used = s->used;
    uint64_t *word = xds_stat_group(s, 1);
    if (word && xds_stat_name(s, word, name, unit, kind)) {
        s->used = used;
        return NULL;
    }
    return word;
}

struct xds_hist *xds_stat_hist(struct xds_stat *s, const char *name, const char *unit)
{
    const uint64_t used = s->used;
    struct xds_hist *h = take(s, sizeof(*h));
    if (!h)
        return NULL;
    xds_hist_init(h); /* before the entry counts: a reader finds a whole one */
    if (add_entry(s, h, name, unit, XDS_STAT_HIST, sizeof(*h))) {
        s->used = used;
        return NULL;
    }
    return h;
}

void xds_stat_beat(struct xds_stat *s, int64_t now_ns)
{
    __atomic_store_n(&s->beat_ns, now_ns, __ATOMIC_RELAXED);
}

static int check_entry(const struct xds_stat *s, const struct xds_stat_entry *e, size_t bytes)
{
    const uint32_t want = e->kind == XDS_STAT_HIST ? sizeof(struct xds_hist) : 8;
    if (e->kind < XDS_STAT_COUNTER || e->kind > XDS_STAT_HIST || e->bytes != want || e->offset % 8)
        return XDS_EMALFORMED;
    if (e->offset > bytes || want > bytes - e->offset)
        return XDS_ETRUNC;
    if (!sound_name(e->name, sizeof(e->name)) || !sound_name(e->unit, sizeof(e->unit)))
        return XDS_EMALFORMED;
    const struct xds_hist *h = (const void *)((const char *)s + e->offset);
    if (e->kind == XDS_STAT_HIST && (h->magic != XDS_HIST_MAGIC || h->n_buckets != XDS_HIST_BUCKETS))
        return XDS_EMALFORMED;
    return 0;
}

int xds_stat_check(const void *mem, size_t bytes)
{
    const struct xds_stat *s = mem;
    if (bytes < sizeof(*s))
        return XDS_ETRUNC;
    if (__atomic_load_n(&s->magic, __ATOMIC_ACQUIRE) != XDS_STAT_MAGIC || s->version != XDS_STAT_VERSION)
        return XDS_EFOREIGN;
    const uint32_t n = __atomic_load_n(&s->n_entries, __ATOMIC_ACQUIRE);
    if (s->header_bytes != sizeof(*s) || s->entry_bytes != sizeof(struct xds_stat_entry) ||
        n > s->cap_entries || !sound_name(s->name, sizeof(s->name)))
        return XDS_EMALFORMED;
    if (s->bytes > bytes || (size_t)n * sizeof(struct xds_stat_entry) > bytes - sizeof(*s))
        return XDS_ETRUNC;
    for (uint32_t i = 0; i < n; i++) {
        const int rc = check_entry(s, table(s) + i, bytes);
        if (rc)
            return rc;
    }
    return (int)n;
}
