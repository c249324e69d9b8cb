/* day.c: the generated day. Benches, the demo's venue and tests feed on it; a change of one byte
 * changes every figure and checksum that is compared with an older one (test_day.py holds a digest).
 *
 * A symbol has a band of 512 ticks; a tick is a bid's, an ask's or empty, so one array of queues
 * serves both sides. Alive orders also lie in a dense array (to draw any) and the latest in a ring
 * (to draw a young one: most orders die young).
 */
#include <string.h>

#include "../../xds/day.h"

#define TICKS      512
#define WORDS      (TICKS / 64)
#define PRICE_TICK 100 /* a cent in ITCH's 1/10000 dollar */
#define DRAWS      (1u << 18)
#define RING       (1u << 16)
#define CHUNK      1024 /* alive orders are kept within so many of the aim */

enum phase { OPENING, DIRECTORY, ACTION, START, TRADING, CLOSED };

struct order {
    uint64_t id;
    uint32_t next, prev, dense, qty;
    uint16_t symbol, tick;
    uint8_t ask;
    uint8_t pad[3];
};

struct queue {
    uint32_t head, tail;
};

struct symbol {
    uint64_t used[WORDS]; /* a bit a tick that has orders    */
    uint32_t base;        /* price of tick 0                 */
    int16_t bid, ask;     /* best ticks; -1 and TICKS: none  */
    int16_t mid;          /* where an empty side starts      */
    uint8_t pad[6];
};

struct young {
    uint64_t id;
    uint32_t order;
    uint32_t pad;
};

struct day {
    struct xds_day_config cfg;
    uint64_t random, written, next_id, match, clock;
    uint32_t phase, step; /* step: of the opening, or the S messages of the end */
    uint32_t alive, free_order, young_at, burst;
    uint32_t last_symbol, climbing;
    struct order *orders;
    uint32_t *dense;
    struct symbol *symbols;
    struct queue *queues;
    uint16_t *draw; /* symbols by activity */
    struct young *ring;
};

_Static_assert(sizeof(struct order) == 32, "a generated order is half a line");

/* splitmix64 */
static uint64_t draw64(struct day *d)
{
    uint64_t z = d->random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint32_t below(struct day *d, uint32_t n)
{
    return (uint32_t)((draw64(d) >> 32) * n >> 32);
}

/* ---- bytes ---------------------------------------------------------------------------------- */

static uint8_t *put(uint8_t *p, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        p[i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
    }
    return p + bytes;
}

static uint8_t *text(uint8_t *p, const char *s, unsigned width)
{
    for (unsigned i = 0; i < width; i++) {
        p[i] = *s ? (uint8_t)*s++ : ' ';
    }
    return p + width;
}

/* Length, type, locate, tracking number, time: what every ITCH message begins with. */
static uint8_t *head(struct day *d, uint8_t *p, unsigned len, char type, uint32_t locate)
{
    p = put(p, len, 2);
    *p++ = (uint8_t)type;
    p = put(p, locate, 2);
    p = put(p, 0, 2);
    return put(p, d->clock, 6);
}

/* Four capitals: 456,976 names for at most 65,535 symbols. */
static void name_of(uint32_t symbol, char out[5])
{
    for (unsigned i = 0; i < 4; i++) {
        out[3 - i] = (char)('A' + symbol % 26);
        symbol /= 26;
    }
    out[4] = 0;
}

/* ---- the market's state --------------------------------------------------------------------- */

static struct queue *queue_of(struct day *d, const struct order *o)
{
    return &d->queues[(uint64_t)o->symbol * TICKS + o->tick];
}

static int seek_down(const struct symbol *s, int from)
{
    for (int w = from >> 6; from >= 0 && w >= 0; w--) {
        uint64_t bits = s->used[w];
        if (w == from >> 6) {
            bits &= ~0ull >> (63 - (from & 63));
        }
        if (bits) {
            return w * 64 + 63 - __builtin_clzll(bits);
        }
    }
    return -1;
}

static int seek_up(const struct symbol *s, int from)
{
    for (int w = from >> 6; w < WORDS; w++) {
        uint64_t bits = s->used[w];
        if (w == from >> 6) {
            bits &= ~0ull << (from & 63);
        }
        if (bits) {
            return w * 64 + __builtin_ctzll(bits);
        }
    }
    return TICKS;
}

static uint32_t enter(struct day *d, uint32_t symbol, int ask, int tick, uint32_t qty)
{
    uint32_t n = d->free_order;
    struct order *o = &d->orders[n];
    struct symbol *s = &d->symbols[symbol];
    d->free_order = o->next;
    d->next_id += 1 + (draw64(d) & 7); /* venues number other things in between */
    *o = (struct order){.id = d->next_id, .qty = qty, .dense = d->alive};
    o->symbol = (uint16_t)symbol;
    o->tick = (uint16_t)tick;
    o->ask = (uint8_t)ask;
    d->dense[d->alive++] = n;
    d->ring[d->young_at++ % RING] = (struct young){.id = o->id, .order = n};
    struct queue *q = queue_of(d, o);
    o->prev = q->tail;
    if (q->tail) {
        d->orders[q->tail].next = n;
    } else {
        q->head = n;
        s->used[tick >> 6] |= 1ull << (tick & 63);
    }
    q->tail = n;
    if (ask ? tick < s->ask : tick > s->bid) {
        *(ask ? &s->ask : &s->bid) = (int16_t)tick;
    }
    return n;
}

static void leave(struct day *d, uint32_t n)
{
    struct order *o = &d->orders[n];
    struct symbol *s = &d->symbols[o->symbol];
    struct queue *q = queue_of(d, o);
    *(o->prev ? &d->orders[o->prev].next : &q->head) = o->next;
    *(o->next ? &d->orders[o->next].prev : &q->tail) = o->prev;
    if (!q->head) {
        s->used[o->tick >> 6] &= ~(1ull << (o->tick & 63));
        if (o->ask && o->tick == s->ask) {
            s->ask = (int16_t)seek_up(s, o->tick);
            s->mid = (int16_t)o->tick;
        } else if (!o->ask && o->tick == s->bid) {
            s->bid = (int16_t)seek_down(s, o->tick);
            s->mid = (int16_t)o->tick;
        }
    }
    uint32_t last = d->dense[--d->alive];
    d->dense[o->dense] = last;
    d->orders[last].dense = o->dense;
    o->id = 0;
    o->next = d->free_order;
    d->free_order = n;
}

/* A tick for a new order of this side: a third join the best, a few improve it where there is room,
 * the rest lie behind with a geometric tail, one in sixteen anywhere in the band. */
static int tick_for(struct day *d, const struct symbol *s, int ask)
{
    uint64_t r = draw64(d);
    int gap = s->ask - s->bid;
    int best = ask ? s->ask : s->bid;
    int step = ask ? 1 : -1;
    int tick;
    if (best < 0 || best == TICKS) { /* nobody on this side: by the last price */
        best = s->mid + step;
    }
    if ((r & 15) == 0) {
        tick = best + step * (int)(r >> 32 & 255);
    } else if ((r & 15) < 3 && gap > 2) {
        tick = best - step;
    } else if ((r & 15) < 8) {
        tick = best;
    } else {
        tick = best + step * (1 + __builtin_ctzll(r >> 8 | 1ull << 20) * (int)(1 + (r >> 40 & 7)));
    }
    int low = ask ? s->bid + 1 : 0, high = ask ? TICKS - 1 : s->ask - 1;
    low = ask && low < 1 ? 1 : low; /* tick 0 is a bid's and the last an ask's: neither side is shut out */
    high = !ask && high > TICKS - 2 ? TICKS - 2 : high;
    return tick < low ? low : tick > high ? high : tick;
}

static uint32_t qty_for(struct day *d)
{
    static const uint16_t usual[16] = {100, 100, 100, 100,  100, 100, 200, 200,
                                       300, 400, 500, 1000, 50,  10,  1,   37};
    uint64_t r = draw64(d);
    return usual[r & 15] + ((r >> 4 & 7) ? 0 : (uint32_t)(r >> 32 & 255));
}

static uint32_t symbol_for(struct day *d)
{
    uint64_t r = draw64(d);
    if (r & 3) { /* one in four stays where the last was */
        d->last_symbol = d->draw[r >> 32 & (DRAWS - 1)];
    }
    return d->last_symbol;
}

/* Half of those that leave are among the last 4,096 entered, a quarter among 65,536, a quarter any. */
static uint32_t victim(struct day *d)
{
    for (unsigned tries = 0; tries < 4; tries++) {
        uint64_t r = draw64(d);
        if ((r & 3) == 3) {
            break;
        }
        uint32_t back = (uint32_t)(r >> 32) & ((r & 2) ? RING - 1 : 4095);
        const struct young *y = &d->ring[(d->young_at - 1 - back) % RING];
        if (y->id && d->orders[y->order].id == y->id) {
            return y->order;
        }
    }
    return d->dense[below(d, d->alive)];
}

/* ---- messages ------------------------------------------------------------------------------- */

static uint32_t price_of(const struct day *d, const struct order *o)
{
    return d->symbols[o->symbol].base + o->tick * (uint32_t)PRICE_TICK;
}

static uint8_t *write_add(struct day *d, uint8_t *p)
{
    uint32_t symbol = symbol_for(d);
    uint64_t r = draw64(d);
    int ask = r & 1;
    uint32_t n = enter(d, symbol, ask, tick_for(d, &d->symbols[symbol], ask), qty_for(d));
    const struct order *o = &d->orders[n];
    int named = !(r >> 8 & 127);
    char name[5];
    name_of(symbol, name);
    p = head(d, p, named ? 40 : 36, named ? 'F' : 'A', symbol + 1);
    p = put(p, o->id, 8);
    *p++ = ask ? 'S' : 'B';
    p = put(p, o->qty, 4);
    p = text(p, name, 8);
    p = put(p, price_of(d, o), 4);
    return named ? text(p, "XDPS", 4) : p;
}

static uint8_t *write_delete(struct day *d, uint8_t *p)
{
    uint32_t n = victim(d);
    p = head(d, p, 19, 'D', d->orders[n].symbol + 1u);
    p = put(p, d->orders[n].id, 8);
    leave(d, n);
    return p;
}

static uint8_t *write_replace(struct day *d, uint8_t *p)
{
    uint32_t n = victim(d);
    struct order old = d->orders[n];
    leave(d, n);
    n = enter(d, old.symbol, old.ask, tick_for(d, &d->symbols[old.symbol], old.ask), qty_for(d));
    p = head(d, p, 35, 'U', old.symbol + 1u);
    p = put(p, old.id, 8);
    p = put(p, d->orders[n].id, 8);
    p = put(p, d->orders[n].qty, 4);
    return put(p, price_of(d, &d->orders[n]), 4);
}

static uint8_t *write_cancel(struct day *d, uint8_t *p)
{
    uint32_t n = victim(d);
    struct order *o = &d->orders[n];
    if (o->qty < 2) {
        return NULL;
    }
    uint32_t part = 1 + below(d, o->qty - 1);
    o->qty -= part;
    p = head(d, p, 23, 'X', o->symbol + 1u);
    p = put(p, o->id, 8);
    return put(p, part, 4);
}

static uint8_t *write_execute(struct day *d, uint8_t *p)
{
    uint32_t symbol = symbol_for(d);
    const struct symbol *s = &d->symbols[symbol];
    uint64_t r = draw64(d);
    /* which side is hit: evenly, leaning back towards the middle of the band */
    int ask = s->mid > TICKS / 2 + 64 ? (r & 7) == 0 : s->mid < TICKS / 2 - 64 ? (r & 7) != 0 : r & 1;
    int tick = ask ? s->ask : s->bid;
    if (tick < 0 || tick == TICKS) {
        return NULL;
    }
    uint32_t n = d->queues[(uint64_t)symbol * TICKS + (unsigned)tick].head;
    struct order *o = &d->orders[n];
    uint32_t part = (r >> 8 & 1) ? o->qty : 1 + below(d, o->qty);
    int priced = !(r >> 16 & 63);
    p = head(d, p, priced ? 36 : 31, priced ? 'C' : 'E', symbol + 1);
    p = put(p, o->id, 8);
    p = put(p, part, 4);
    p = put(p, ++d->match, 8);
    if (priced) {
        *p++ = (r >> 24 & 3) ? 'Y' : 'N';
        p = put(p, price_of(d, o), 4);
    }
    o->qty -= part;
    if (!o->qty) {
        leave(d, n);
    }
    return p;
}

static uint8_t *write_trade(struct day *d, uint8_t *p) /* against a hidden order */
{
    uint32_t symbol = symbol_for(d);
    char name[5];
    name_of(symbol, name);
    p = head(d, p, 44, 'P', symbol + 1);
    p = put(p, 0, 8);
    *p++ = 'B';
    p = put(p, qty_for(d), 4);
    p = text(p, name, 8);
    p = put(p, d->symbols[symbol].base + (uint32_t)d->symbols[symbol].mid * PRICE_TICK, 4);
    return put(p, ++d->match, 8);
}

static uint8_t *write_imbalance(struct day *d, uint8_t *p)
{
    uint32_t symbol = symbol_for(d);
    uint32_t price = d->symbols[symbol].base + (uint32_t)d->symbols[symbol].mid * PRICE_TICK;
    char name[5];
    name_of(symbol, name);
    p = head(d, p, 50, 'I', symbol + 1);
    p = put(p, qty_for(d), 8);
    p = put(p, qty_for(d), 8);
    *p++ = 'B';
    p = text(p, name, 8);
    p = put(p, price, 4);
    p = put(p, price, 4);
    p = put(p, price, 4);
    *p++ = 'C';
    *p++ = ' ';
    return p;
}

static uint8_t *write_system(struct day *d, uint8_t *p, char event)
{
    p = head(d, p, 12, 'S', 0);
    *p++ = (uint8_t)event;
    return p;
}

static uint8_t *write_directory(struct day *d, uint8_t *p, uint32_t symbol)
{
    char name[5];
    name_of(symbol, name);
    p = head(d, p, 39, 'R', symbol + 1);
    p = text(p, name, 8);
    p = text(p, "QN", 2); /* market category, financial status */
    p = put(p, 100, 4);
    p = text(p, "NCZ PNN1N", 9); /* round lots only .. ETP flag */
    p = put(p, 0, 4);            /* ETP leverage                */
    *p++ = 'N';
    return p;
}

static uint8_t *write_action(struct day *d, uint8_t *p, uint32_t symbol)
{
    char name[5];
    name_of(symbol, name);
    p = head(d, p, 25, 'H', symbol + 1);
    p = text(p, name, 8);
    *p++ = 'T';
    return text(p, "", 5);
}

static uint8_t *write_trading(struct day *d, uint8_t *p)
{
    uint8_t *end = NULL;
    uint32_t r = below(d, 1000);
    if (d->alive < 64 || (d->climbing && r < 600)) {
        return write_add(d, p);
    }
    /* per mille: replace 80, execute 30, cancel 15, trade 5, imbalance 5; the rest adds or deletes */
    if (r >= 865) {
        end = r < 945   ? write_replace(d, p)
              : r < 975 ? write_execute(d, p)
              : r < 990 ? write_cancel(d, p)
              : r < 995 ? write_trade(d, p)
                        : write_imbalance(d, p);
    }
    if (end) {
        return end;
    }
    int more = d->alive + CHUNK < d->cfg.orders_alive || (d->alive < d->cfg.orders_alive && (r & 1));
    int less = d->alive >= d->cfg.orders_alive + CHUNK;
    return more || (!less && (r & 1)) ? write_add(d, p) : write_delete(d, p);
}

/* Bursts: for some hundred messages the gaps are 50 to 305 ns, between them 0 to 65 us. */
static void advance(struct day *d)
{
    uint64_t r = draw64(d);
    if (d->burst) {
        d->burst--;
        d->clock += 50 + (r & 255);
        return;
    }
    d->clock += r >> 16 & 0xffff;
    if (!(r & 1023)) {
        d->burst = 64 + (uint32_t)(r >> 40 & 1023);
    }
}

static uint8_t *write_next(struct day *d, uint8_t *p)
{
    switch (d->phase) {
    case OPENING:
        d->phase = DIRECTORY;
        return write_system(d, p, 'O');
    case DIRECTORY:
        p = write_directory(d, p, d->step);
        if (++d->step == d->cfg.symbols) {
            d->phase = ACTION;
            d->step = 0;
        }
        return p;
    case ACTION:
        p = write_action(d, p, d->step);
        if (++d->step == d->cfg.symbols) {
            d->phase = START;
            d->step = 0;
        }
        return p;
    case START:
        p = write_system(d, p, d->step ? 'Q' : 'S');
        if (d->step++) {
            d->phase = TRADING;
        }
        return p;
    default:
        if (d->cfg.messages - d->written <= 3) {
            d->phase = CLOSED;
            return write_system(d, p, "CEM"[d->cfg.messages - d->written - 1]);
        }
        if (d->alive >= d->cfg.orders_alive) {
            d->climbing = 0;
        }
        return write_trading(d, p);
    }
}

/* ---- the interface -------------------------------------------------------------------------- */

struct layout {
    size_t orders, dense, symbols, queues, draw, ring, total;
    uint64_t n_orders;
};

static int layout_of(const struct xds_day_config *c, struct layout *o)
{
    if (!c->symbols || c->symbols > 65535 || c->orders_alive < 64 || c->orders_alive > 1u << 28 ||
        c->messages < 2ull * c->symbols + 6) {
        return 0;
    }
    o->n_orders = c->orders_alive + 2ull * CHUNK + 1024;
    o->orders = (sizeof(struct day) + 63) & ~(size_t)63;
    o->dense = o->orders + (o->n_orders + 1) * sizeof(struct order);
    o->symbols = (o->dense + o->n_orders * sizeof(uint32_t) + 63) & ~(size_t)63;
    o->queues = o->symbols + c->symbols * sizeof(struct symbol);
    o->draw = o->queues + c->symbols * sizeof(struct queue) * TICKS;
    o->ring = o->draw + DRAWS * sizeof(uint16_t);
    o->total = o->ring + RING * sizeof(struct young);
    return 1;
}

size_t xds_day_size(const struct xds_day_config *cfg)
{
    struct layout o;
    return layout_of(cfg, &o) ? o.total : 0;
}

/* Activity by rank r is 1 / (r + 25), Zipf's law with Mandelbrot's shift: of 8,900 symbols the busiest
 * has under one per cent, the first hundred about a quarter. Every symbol has at least one draw. */
static void fill_draws(struct day *d)
{
    uint64_t sum = 0, done = 0;
    uint32_t at = 0;
    for (uint32_t i = 0; i < d->cfg.symbols; i++) {
        sum += (1ull << 40) / (i + 26);
    }
    for (uint32_t i = 0; i < d->cfg.symbols; i++) {
        done += (1ull << 40) / (i + 26);
        uint32_t end = (uint32_t)(done / ((sum >> 18) + 1));
        end = end <= at ? at + 1 : end;
        end = i + 1 == d->cfg.symbols || end > DRAWS ? DRAWS : end;
        while (at < end) {
            d->draw[at++] = (uint16_t)i;
        }
    }
}

int xds_day_init(void *mem, const struct xds_day_config *cfg)
{
    struct layout o;
    struct day *d = mem;
    char *base = mem;
    if (!layout_of(cfg, &o)) {
        return XDS_ECONFIG;
    }
    memset(mem, 0, o.total);
    d->cfg = *cfg;
    d->random = cfg->seed;
    d->orders = (struct order *)(base + o.orders);
    d->dense = (uint32_t *)(base + o.dense);
    d->symbols = (struct symbol *)(base + o.symbols);
    d->queues = (struct queue *)(base + o.queues);
    d->draw = (uint16_t *)(base + o.draw);
    d->ring = (struct young *)(base + o.ring);
    d->clock = 34200ull * 1000000000; /* 09:30:00 after midnight */
    d->next_id = 1000;
    d->climbing = 1;
    d->phase = OPENING;
    for (uint64_t i = 1; i < o.n_orders; i++) {
        d->orders[i].next = (uint32_t)(i + 1);
    }
    d->free_order = 1;
    for (uint32_t i = 0; i < cfg->symbols; i++) {
        struct symbol *s = &d->symbols[i];
        s->base = (500 + below(d, 40000)) * PRICE_TICK; /* 5 to 405 dollars */
        s->bid = -1;
        s->ask = TICKS;
        s->mid = TICKS / 2;
    }
    fill_draws(d);
    return 0;
}

int64_t xds_day_next(void *mem, uint8_t *out, size_t cap)
{
    struct day *d = mem;
    uint8_t *p = out;
    while (d->written < d->cfg.messages && (size_t)(p - out) + XDS_DAY_ROOM <= cap) {
        p = write_next(d, p);
        d->written++;
        advance(d);
    }
    return p - out;
}

uint64_t xds_day_messages(const void *mem)
{
    return ((const struct day *)mem)->written;
}

uint64_t xds_day_orders(const void *mem)
{
    return ((const struct day *)mem)->alive;
}
