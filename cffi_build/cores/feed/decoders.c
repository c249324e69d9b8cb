/* decoders.c: the functions of xds/decode.h over the decoders that the build made from
 * xdpstack/schemas. The list itself is generated (build/gen/registry.c): a new schema file is enough.
 */
#include "cores/feed/symtab.h"

#include <string.h>

extern const struct xds_decoder *const xdsi_decoder_list[];
extern const unsigned xdsi_decoder_list_len;

unsigned xds_decoder_count(void)
{
    return xdsi_decoder_list_len;
}

const struct xds_decoder *xds_decoder_at(unsigned i)
{
    return i < xdsi_decoder_list_len ? xdsi_decoder_list[i] : NULL;
}

const struct xds_decoder *xds_decoder_find(const char *name)
{
    for (unsigned i = 0; i < xdsi_decoder_list_len; i++)
        if (!strcmp(xdsi_decoder_list[i]->name, name))
            return xdsi_decoder_list[i];
    return NULL;
}

size_t xds_decoder_size(const struct xds_decoder *d, const struct xds_decoder_config *cfg)
{
    return d->size(cfg);
}

int xds_decoder_init(const struct xds_decoder *d, void *mem, const struct xds_decoder_config *cfg)
{
    return d->init(mem, cfg);
}

int xds_decoder_block(const struct xds_decoder *d, void *mem, const struct xds_block *b, struct xds_sink *out)
{
    return d->block(mem, b, out);
}

uint64_t xds_decoder_run(const struct xds_decoder *d, void *mem, const struct xds_block *blocks, size_t n,
                         struct xds_sink *out)
{
    uint64_t messages = 0;
    for (size_t i = 0; i < n; i++) {
        out->n_updates = 0;
        out->n_messages = 0;
        messages += (uint64_t)d->block(mem, &blocks[i], out);
    }
    return messages;
}

void xds_decoder_stats(const struct xds_decoder *d, const void *mem, struct xds_decoder_stats *out)
{
    (void)d;
    *out = ((const struct xdsi_decoder_mem *)mem)->stats;
}

uint64_t xds_decoder_table_version(const struct xds_decoder *d, const void *mem)
{
    (void)d;
    return ((const struct xdsi_decoder_mem *)mem)->tab.version;
}

unsigned xds_decoder_instruments(const struct xds_decoder *d, const void *mem)
{
    (void)d;
    return ((const struct xdsi_decoder_mem *)mem)->tab.used;
}

const struct xds_instrument *xds_decoder_instrument(const struct xds_decoder *d, const void *mem,
                                                    unsigned index)
{
    const struct xdsi_symtab *t = &((const struct xdsi_decoder_mem *)mem)->tab;
    (void)d;
    if (index >= t->used || !(t->inst[index].flags & XDS_INSTRUMENT_USED))
        return NULL;
    return &t->inst[index];
}
