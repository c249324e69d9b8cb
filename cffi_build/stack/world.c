/* world.c: a host, its TCP and its sockets, one behind the other in one block of memory. */
#include "xds/world.h"

#include "facade_int.h"

static size_t round_up(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

/* Sockets hang on a stack's size alone, which it has before it is there. */
static size_t socks_size(const struct xds_world_config *cfg)
{
    struct xds_stack like = {.cfg = cfg->stack};

    like.cfg.connections = like.cfg.connections ? like.cfg.connections : 64;
    return xds_socks_size(&cfg->socks, &like);
}

size_t xds_world_size(const struct xds_world_config *cfg)
{
    const size_t host = xds_host_size(&cfg->host), stack = xds_stack_size(&cfg->stack),
                 socks = socks_size(cfg);

    return host && stack && socks && cfg->prefix <= 32 ? round_up(host) + round_up(stack) + round_up(socks)
                                                       : 0;
}

struct xds_socks *xds_world_init(void *mem, const struct xds_world_config *cfg)
{
    static const uint8_t nowhere[4];
    const uint8_t prefix = (uint8_t)(cfg->prefix ? cfg->prefix : 24);
    uint8_t *const at = mem;
    uint32_t address;

    if (!xds_world_size(cfg))
        return NULL;
    struct xds_host *host = (void *)at;
    struct xds_stack *stack = (void *)(at + round_up(xds_host_size(&cfg->host)));
    struct xds_socks *socks = (void *)((uint8_t *)stack + round_up(xds_stack_size(&cfg->stack)));
    memcpy(&address, cfg->address, 4);
    if (xds_host_init(host, &cfg->host) ||
        (memcmp(cfg->address, nowhere, 4) != 0 && xds_host_add_address(host, address, prefix)) ||
        xds_stack_init(stack, &cfg->stack, host) || xds_socks_init(socks, &cfg->socks, stack, host))
        return NULL;
    return socks;
}

struct xds_host *xds_socks_host(struct xds_socks *n)
{
    return n->host;
}
