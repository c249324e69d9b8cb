// peer_itchcpp.cpp: itchcpp's C++ callback interface, from its own headers and library, over a framed
// stream: the peer that owes nothing to Python. Compiled by book_bench.py where the package brought them.
#include <cstdint>
#include <ctime>

#include "itch/parser.hpp"

extern "C" int64_t peer_parse(const char *data, uint64_t len, uint64_t *messages)
{
    itch::Parser parser;
    uint64_t count = 0;
    timespec a, b;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
    parser.parse(data, len, [&](const itch::Message &) { ++count; });
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
    *messages = count;
    return (b.tv_sec - a.tv_sec) * 1000000000ll + b.tv_nsec - a.tv_nsec;
}
