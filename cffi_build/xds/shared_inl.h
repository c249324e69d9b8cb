/* shared_inl.h: what readers of shared segments need of the system, for C and C++ (GCC, Clang), with nothing to link:
 * memory that is mapped twice in a row, who lives, and how to spin.
 */
#ifndef XDS_SHARED_INL_H
#define XDS_SHARED_INL_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Between two looks at a word that another core will write: who does not pause takes the line from it again while
 * it is being filled. */
static inline void xdsi_shared_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Whether a segment's sizes are possible: one of the two headers, a power of two behind it, and the file as long. */
static inline int xdsi_shared_sizes(uint64_t header, uint64_t small, uint64_t huge, uint64_t bytes,
                                    uint64_t file)
{
    return (header == small || header == huge) && bytes >= 4096 && bytes <= (uint64_t)1 << 40 &&
           !(bytes & (bytes - 1)) && header + bytes == file;
}

/* header bytes of fd, then the bytes behind them twice; the header lies at a multiple of its size, so that huge pages
 * stay whole. The whole range is reserved first: the second half cannot meet somebody else's mapping. may: what this
 * process may change: 0 nothing, 1 the header, 2 all. Returns 0 and the address, -errno. */
static inline int xdsi_shared_map(int fd, uint64_t header, uint64_t bytes, int may, void **out)
{
    const uint64_t whole = header + 2 * bytes, align = header;
    char *room = (char *)mmap(NULL, whole + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == (char *)MAP_FAILED)
        return -errno;
    char *base = room + (align - (uintptr_t)room % align) % align;
    if (base != room)
        munmap(room, (size_t)(base - room));
    if (room + align != base)
        munmap(base + whole, (size_t)(room + align - base));
    const int flags = MAP_SHARED | MAP_FIXED;
    const int head = may ? PROT_READ | PROT_WRITE : PROT_READ, data = may > 1 ? head : PROT_READ;
    if (mmap(base, header, head, flags, fd, 0) == MAP_FAILED ||
        mmap(base + header, bytes, data, flags | MAP_POPULATE, fd, (off_t)header) == MAP_FAILED ||
        mmap(base + header + bytes, bytes, data, flags | MAP_POPULATE, fd, (off_t)header) == MAP_FAILED) {
        const int error = errno;
        munmap(base, whole);
        return -error;
    }
    *out = base;
    return 0;
}

/* When a process started, in ticks since boot (field 22 of /proc/PID/stat); 0 when it is dead. */
static inline uint64_t xdsi_shared_start(uint32_t pid)
{
    char path[40], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    const ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    const char *at = strrchr(text, ')'); /* the name may hold anything */
    char state = 0;
    unsigned long long start = 0;
    if (!at ||
        sscanf(at + 1, " %c%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%*s%llu", &state, &start) != 2)
        return 0;
    return state == 'Z' || state == 'X' ? 0 : (uint64_t)start;
}

/* The process of a side, by its words in a segment, or 0: none has it, or who had it is dead. A few microseconds. */
static inline uint32_t xdsi_shared_who(const uint32_t *pid, const uint64_t *start)
{
    const uint32_t who = __atomic_load_n(pid, __ATOMIC_ACQUIRE);
    const uint64_t since = who ? xdsi_shared_start(who) : 0;
    return since && since == __atomic_load_n(start, __ATOMIC_RELAXED) ? who : 0;
}

#endif
