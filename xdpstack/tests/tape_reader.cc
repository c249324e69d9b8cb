// tape_reader.cc: a reader in C++ of nothing but cffi_build/xds; prints a line a record until the end;
// with a second argument also when its writer has died, and when there is another.
#include <stdio.h>
#include <stdint.h>

#include "tape_reader_inl.h"

int main(int argc, char **argv)
{
    xds_tape_reader reader;
    int rc = argc > 1 ? xdsi_tape_open(&reader, argv[1], "c++", XDS_TAPE_OLDEST) : -EINVAL;
    if (rc)
        return fprintf(stderr, "open: %d\n", rc), 1;
    printf("ready\n");
    fflush(stdout);
    bool alive = true;
    const auto look = [&] {
        if (argc > 2 && (xdsi_tape_writer(&reader) != 0) != alive) {
            alive = !alive;
            printf(alive ? "back\n" : "gone\n");
        }
        fflush(stdout);
    };
    xds_tape_record head;
    alignas(8) char data[256];
    while ((rc = xdsi_tape_take(&reader, &head, data, sizeof data)) >= 0)
        if (rc)
            printf("%llu %u %.*s\n", (unsigned long long)head.stamp, head.kind, (int)head.len, data);
        else {
            look();
            xdsi_tape_wait(&reader, 10000000);
        }
    xdsi_tape_leave(&reader);
    return rc == -EPIPE ? 0 : 2;
}
