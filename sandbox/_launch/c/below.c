// below.c: opens paths of the container, which lead nowhere else.
//
// Theory of operation: openat2 resolves all of a path below `dir`, whatever links lie inside. Where fs.protected_symlinks is set,
// as it is wherever systemd starts a machine, the kernel refuses (EACCES) to follow a link in a sticky directory that all may
// write to (a Tmpfs, /tmp), for everybody but the link's owner; root, as whom we look, is no exception. That rule is for those
// whom a link could lead astray, which it cannot below `dir`; and what a caller is answered should not depend on it. So then
// links are put into the path here, one after the other, each found by openat2 below `dir`, and what is opened at last has none.
// A program that exchanges names meanwhile gets what it could have had before: another path of its own container.
#define _GNU_SOURCE
#include "below.h"
#include "sys.h"

#include <stdbool.h>
#include <string.h>

enum { MOST_LINKS = 40, PATH_SPACE = 4096 }; // as the kernel has it

// What the link `path` (of which only the first `end` bytes count) leads to. Returns its length; 0: it is no link.
static size_t read_link(int dir, char *path, size_t end, uint64_t resolve, char *target) {
    char kept = path[end];
    path[end] = 0;
    int fd = openat2(dir, path, O_PATH | O_NOFOLLOW, 0, resolve);
    path[end] = kept;
    if (fd < 0)
        return 0;
    ssize_t n = readlinkat(fd, "", target, PATH_SPACE);
    close(fd);
    return n > 0 ? (size_t)n : 0;
}

// Puts what the first link in `path` leads to in its place. False: there is none, or no room.
static bool put_link(int dir, char *path, bool follow_last, uint64_t resolve) {
    char target[PATH_SPACE];
    size_t end = 0;
    for (;;) {
        size_t begin = end + strspn(path + end, "/");
        end = begin + strcspn(path + begin, "/");
        if (begin == end || (!path[end] && !follow_last))
            return false;
        size_t length = read_link(dir, path, end, resolve, target);
        if (!length)
            continue;
        size_t before = *target == '/' ? 0 : begin, rest = strlen(path + end) + 1;
        if (before + length + rest > PATH_SPACE)
            return false;
        memmove(path + before + length, path + end, rest);
        memcpy(path + before, target, length);
        return true;
    }
}

int open_below(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    if (!resolve && dir != AT_FDCWD)
        resolve = X_RESOLVE_IN_ROOT | X_RESOLVE_NO_MAGICLINKS;
    path = *path ? path : ".";
    int fd = openat2(dir, path, flags, mode, resolve);
    if (fd >= 0 || errno != EACCES || resolve != (X_RESOLVE_IN_ROOT | X_RESOLVE_NO_MAGICLINKS) || strlen(path) >= PATH_SPACE)
        return fd;
    char walked[PATH_SPACE];
    strcpy(walked, path);
    for (int links = 0; put_link(dir, walked, !(flags & O_NOFOLLOW), resolve); links++) {
        if (links == MOST_LINKS) {
            errno = ELOOP;
            return -1;
        }
        fd = openat2(dir, walked, flags, mode, resolve);
        if (fd >= 0 || errno != EACCES)
            return fd;
    }
    errno = EACCES;
    return -1;
}
