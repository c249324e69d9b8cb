/* csum_check.c: ground/csum_inl.h against sums of single bytes: every length to 2,112, every alignment to 16.
 *
 * Usage: csum_check SEED. Prints how many sums were compared, exit 1 with the first that is wrong.
 * The bytes end at a page that nobody may read, so a read past the end does not go unseen.
 */
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "ground/csum_inl.h"

#define LONGEST  2112
#define ALIGN    16
#define PATTERNS 9

static uint64_t compared, state;
static uint8_t *page_end; /* the first byte that must not be read */

static uint32_t chance(void)
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 33);
}

/* RFC 1071, byte by byte: what the 16 bits in memory order add up to, with end-around carry at once. */
static uint16_t plain_sum(uint16_t start, const uint8_t *p, uint32_t len)
{
    uint32_t sum = start;
    for (uint32_t i = 0; i < len; i++) {
        sum += i % 2 ? (uint32_t)p[i] << 8 : p[i];
        if (sum > 0xffff)
            sum -= 0xffff;
    }
    return (uint16_t)sum;
}

static void must(uint16_t got, uint16_t wanted, const char *what, uint32_t len, uint32_t align, int pattern)
{
    compared++;
    if (got == wanted)
        return;
    printf("%s: length %u, alignment %u, pattern %d: %#06x, not %#06x\n", what, len, align, pattern, got,
           wanted);
    exit(1);
}

static void paint(uint8_t *p, uint32_t len, int pattern)
{
    static const uint8_t every[][2] = {{0, 0}, {0xff, 0xff}, {0xff, 0}, {0, 0xff}, {0xfe, 0xff}, {1, 0}};
    for (uint32_t i = 0; i < len; i++) {
        if (pattern < 6)
            p[i] = every[pattern][i % 2];
        else if (pattern == 6) /* carries through whole words: all ones, and a one that tips them over */
            p[i] = i % 8 == 7 ? 1 : 0xff;
        else
            p[i] = (uint8_t)chance();
    }
}

static void check_splits(const uint8_t *p, uint32_t len, uint16_t wanted, uint32_t align, int pattern)
{
    const uint32_t step = len <= 130 ? 2 : (len / 2 + chance() % len) & ~1u;
    for (uint32_t at = 0; at <= len; at += step) { /* an even head; the tail may be odd */
        uint64_t sum = xdsi_csum_add(xdsi_csum_add(0, p, at), p + at, len - at);
        must(xdsi_csum_fold(sum), wanted, "split", len, align, pattern);
        const uint32_t more = (len - at) / 3 & ~1u; /* and three pieces */
        sum = xdsi_csum_add(xdsi_csum_add(0, p, at), p + at, more);
        must(xdsi_csum_fold(xdsi_csum_add(sum, p + at + more, len - at - more)), wanted, "three pieces", len,
             align, pattern);
    }
    for (uint32_t at = 1; at <= len; at += step) { /* an odd head: the tail's sum is swapped (RFC 1071 2B) */
        const uint16_t tail = xdsi_csum_fold(xdsi_csum_add(0, p + at, len - at));
        const uint64_t sum = xdsi_csum_add(0, p, at) + __builtin_bswap16(tail);
        must(xdsi_csum_fold(sum), wanted, "odd split", len, align, pattern);
    }
}

/* The copy sums as add does, and writes len bytes: no more. */
static void check_copy(const uint8_t *p, uint32_t len, uint16_t wanted, uint32_t align, int pattern)
{
    static uint8_t room[16 + ALIGN + LONGEST + 16];
    uint8_t *to = room + 16 + (align * 7 + len) % ALIGN;
    memset(to - 16, 0xa5, len + 32);
    const uint16_t sum = xdsi_csum_fold(xdsi_csum_copy(0xffff, to, p, len));
    must(sum, wanted ? wanted : 0xffff, "copy", len, align, pattern);
    must(memcmp(to, p, len) != 0, 0, "copied bytes", len, align, pattern);
    memset(to, 0x5a, len);
    xdsi_copy(to, p, len);
    must(memcmp(to, p, len) != 0, 0, "plainly copied bytes", len, align, pattern);
    for (int i = 1; i <= 16; i++) {
        must(to[-i], 0xa5, "byte before the copy", len, align, pattern);
        must(to[len + (uint32_t)i - 1], 0xa5, "byte behind the copy", len, align, pattern);
    }
    if (len == 20)
        must(xdsi_csum_fold(xdsi_csum_ipv4(p)), wanted, "header", len, align, pattern);
}

static void check_one(uint32_t len, uint32_t align, int pattern)
{
    uint8_t *p = page_end - len - align;
    paint(p - 8, len + align + 8, 7); /* what lies around it must not count */
    paint(p, len, pattern);
    const uint16_t wanted = plain_sum(0, p, len);
    must(xdsi_csum_fold(xdsi_csum_add(0, p, len)), wanted, "sum", len, align, pattern);

    static const uint64_t starts[] = {1, 0xffff, 0x10000, 0xffffffff, 0x1fffe0000, 0xffffffffffff};
    for (unsigned i = 0; i < sizeof starts / sizeof *starts; i++) {
        const uint16_t start = xdsi_csum_fold(starts[i]);
        must(start, (uint16_t)((starts[i] - 1) % 0xffff + 1), "fold", len, align, pattern);
        const uint32_t both = (uint32_t)start + wanted;
        must(xdsi_csum_fold(xdsi_csum_add(starts[i], p, len)),
             (uint16_t)(both > 0xffff ? both - 0xffff : both), "running sum", len, align, pattern);
    }
    check_splits(p, len, wanted, align, pattern);
    check_copy(p, len, wanted, align, pattern);
    if (len >= 4) { /* a checksum put in makes the whole all ones; a bit that falls over shows */
        const uint32_t at = chance() % (len / 2) * 2;
        p[at] = p[at + 1] = 0;
        const uint16_t sum = (uint16_t)~xdsi_csum_fold(xdsi_csum_add(0, p, len));
        memcpy(p + at, &sum, 2);
        must(xdsi_csum_fold(xdsi_csum_add(0, p, len)), 0xffff, "verified", len, align, pattern);
        p[chance() % len] ^= (uint8_t)(1u << chance() % 8);
        must(xdsi_csum_fold(xdsi_csum_add(0, p, len)) == 0xffff, 0, "damaged", len, align, pattern);
    }
}

static void check_pseudo(void)
{
    for (uint32_t len = 0; len <= 0xffff; len++) {
        uint8_t header[12];
        uint32_t address[2];
        paint(header, 8, len % 4 ? 7 : 1);
        memcpy(address, header, 8);
        header[8] = 0;
        header[9] = len % 2 ? 17 : 6;
        header[10] = (uint8_t)(len >> 8);
        header[11] = (uint8_t)len;
        must(xdsi_csum_fold(xdsi_csum_pseudo(address[0], address[1], header[9], len)),
             plain_sum(0, header, sizeof header), "pseudo-header", len, 0, 0);
    }
}

int main(int argc, char **argv)
{
    const size_t room = 1 << 16;
    uint8_t *map = mmap(NULL, room + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (argc != 2 || map == MAP_FAILED || mprotect(map + room, 4096, PROT_NONE))
        return 2;
    state = strtoull(argv[1], NULL, 10);
    page_end = map + room;
    for (uint32_t len = 0; len <= LONGEST; len++)
        for (uint32_t align = 0; align < ALIGN; align++)
            for (int pattern = 0; pattern < PATTERNS; pattern++)
                check_one(len, align, pattern);
    check_pseudo();
    printf("%llu\n", (unsigned long long)compared);
    return 0;
}
