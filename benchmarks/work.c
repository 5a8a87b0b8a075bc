// The benchmarks' second payload: `work sleep`, `work spin` (both for ever), `work write BYTES` (to standard output), `work touch PATH`.
#define _GNU_SOURCE
#include <stdio.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char block[65536]; // what a pipe holds by default

static int write_bytes(long long left) {
    memset(block, 'x', sizeof block);
    while (left > 0) {
        ssize_t n = write(1, block, left < (long long)sizeof block ? (size_t)left : sizeof block);
        if (n <= 0)
            return 1;
        left -= n;
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "write") == 0)
        return write_bytes(atoll(argv[2]));
    if (argc == 3 && strcmp(argv[1], "touch") == 0)
        return open(argv[2], O_WRONLY | O_CREAT, 0600) < 0;
    if (argc == 2 && strcmp(argv[1], "spin") == 0)
        for (volatile unsigned long i = 0;; i++)
            ;
    if (argc == 2 && strcmp(argv[1], "sleep") == 0)
        for (;;)
            pause();
    fputs("usage: work sleep | spin | write BYTES | touch PATH\n", stderr);
    return 2;
}
