// below.h: opens paths of the container, which lead nowhere else.
#ifndef SANDBOX_BELOW_H
#define SANDBOX_BELOW_H

#include <stdint.h>

// Opens `path` below `dir`; confined to it unless `dir` is the process's own view (AT_FDCWD) or `resolve` (openat2's) says
// otherwise. Returns a descriptor, or -1 with errno.
int open_below(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);

#endif
