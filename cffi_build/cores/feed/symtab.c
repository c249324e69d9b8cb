/* symtab.c: the instrument table's slow half: sizes, adding, naming (see symtab.h). */
#include "cores/feed/symtab.h"

#include <string.h>

#define INSTRUMENTS_MAX (1u << 24)

static uint32_t slots_for(uint32_t max)
{
    uint32_t n = 16;
    while (n < 2 * max)
        n *= 2;
    return n;
}

static size_t align64(size_t n)
{
    return (n + 63) & ~(size_t)63;
}

size_t xdsi_symtab_size(const struct xds_decoder_config *cfg, int direct)
{
    if (!cfg->max_instruments || cfg->max_instruments > INSTRUMENTS_MAX)
        return 0;
    size_t n = align64(cfg->max_instruments * sizeof(struct xds_instrument));
    n += align64(cfg->max_instruments * sizeof(struct xdsi_inst_state));
    n += direct ? XDSI_DIRECT_KEYS : slots_for(cfg->max_instruments) * sizeof(struct xdsi_sym_slot);
    return n + 64;
}

void xdsi_symtab_init(struct xdsi_symtab *t, void *room, const struct xds_decoder_config *cfg, int direct)
{
    uint8_t *at = (uint8_t *)align64((size_t)room);
    memset(room, 0, xdsi_symtab_size(cfg, direct));
    memset(t, 0, sizeof(*t));
    t->max = cfg->max_instruments;
    t->inst = (struct xds_instrument *)at;
    at += align64(t->max * sizeof(struct xds_instrument));
    t->state = (struct xdsi_inst_state *)at;
    at += align64(t->max * sizeof(struct xdsi_inst_state));
    if (direct) {
        t->known = at;
    } else {
        t->slots = (struct xdsi_sym_slot *)at;
        t->mask = slots_for(t->max) - 1;
    }
}

static void enter(struct xdsi_symtab *t, uint32_t index, uint64_t key)
{
    struct xds_instrument *inst = &t->inst[index];
    inst->key = key;
    inst->index = index;
    inst->scale = t->scale;
    inst->depth = t->depth;
    inst->implied_depth = t->implied_depth;
    inst->flags = XDS_INSTRUMENT_USED;
    t->state[index].scale = t->scale;
    t->version++;
    if (index >= t->used)
        t->used = index + 1;
}

uint32_t xdsi_symtab_add(struct xdsi_symtab *t, uint64_t key)
{
    if (!t->slots) {
        if (key >= t->max || key >= XDSI_DIRECT_KEYS)
            return XDSI_NO_INSTRUMENT;
        if (!t->known[key]) {
            enter(t, (uint32_t)key, key);
            t->known[key] = XDS_INSTRUMENT_USED;
        }
        return (uint32_t)key;
    }
    uint32_t index = xdsi_symtab_find(t, key);
    if (index != XDSI_NO_INSTRUMENT || t->used == t->max)
        return index;
    uint64_t at = xdsi_sym_hash(key) & t->mask;
    while (t->slots[at].index1)
        at = (at + 1) & t->mask;
    index = t->used;
    t->slots[at].key = key;
    t->slots[at].index1 = index + 1;
    enter(t, index, key);
    return index;
}

void xdsi_symtab_name(struct xdsi_symtab *t, uint32_t index, const uint8_t *symbol, unsigned len,
                      unsigned flags)
{
    struct xds_instrument *inst = &t->inst[index];
    if (len > sizeof(inst->symbol))
        len = sizeof(inst->symbol);
    while (len && (symbol[len - 1] == ' ' || symbol[len - 1] == 0))
        len--;
    memset(inst->symbol, 0, sizeof(inst->symbol));
    memcpy(inst->symbol, symbol, len);
    inst->flags |= (uint8_t)(flags | XDS_INSTRUMENT_SYMBOL);
    t->version++;
    if (t->known)
        t->known[index] |= (uint8_t)(flags | XDS_INSTRUMENT_SYMBOL);
}

void xdsi_symtab_anew(struct xdsi_symtab *t)
{
    for (uint32_t i = 0; i < t->used; i++)
        t->state[i].flags = (uint8_t)((t->state[i].flags & ~XDSI_INST_SNAPSHOT) | XDSI_INST_ANEW);
}
