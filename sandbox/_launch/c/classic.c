// classic.c: the attributes of mounts on kernels before mount_setattr(2), Linux 5.12.
//
// Theory of operation: mount(2) changes mounts that are attached, one at a time, and by a path, which a descriptor has in
// /proc/self/fd. It takes all of a mount's attributes at once, so those that there are (of a mount that came from another user
// namespace none may be taken away) are read with fstatfs(2) and given again; but for those about times of access, which stay
// when none is given (path_mount in fs/namespace.c).
//
// What is mounted below a mount is told by /proc/self/mountinfo alone. It is made private first: from then on nothing is added to
// it by others, and in this mount namespace there are none. A mount that lies below another cannot be reached by its path: an
// error, for without its attributes it must not stay.
#define _GNU_SOURCE
#include "classic.h"
#include "sys.h"

#include <linux/stat.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/statfs.h>

#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x1000U
#endif

enum {
    ATTRS = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, // of the same values as MOUNT_ATTR_* and ST_*
    NO_SYMLINKS = 256,
    ST_NO_SYMLINKS = 0x2000, // MS_NOSYMFOLLOW and ST_NOSYMFOLLOW, Linux 5.10
    MAX_MOUNTS = 4096,
    LINE = 16384, // four paths of 4,096 bytes would have more, escaped: such a line is an error
    MNT_ID_OFFSET = 144,
};

static int fail(int error) {
    errno = error;
    return -1;
}

static int change(int fd, unsigned long flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return mount(NULL, path, NULL, flags, NULL);
}

static int set_one(int fd, uint64_t set) {
    struct statfs fs;
    if (fstatfs(fd, &fs) < 0)
        return -1;
    unsigned long others = fs.f_flags & ST_NO_SYMLINKS ? NO_SYMLINKS : 0;
    return change(fd, MS_REMOUNT | MS_BIND | others | (((unsigned long)fs.f_flags | (unsigned long)set) & ATTRS));
}

// The number by which mountinfo knows the mount of `fd`; Linux 5.8. 0: none, with errno set.
static uint64_t mount_id(int fd) {
    unsigned char found[256] = {0}; // struct statx, which older headers lack the field of
    uint32_t mask;
    uint64_t id;
    if (syscall(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_MNT_ID, found) < 0)
        return 0;
    memcpy(&mask, found, sizeof mask);
    memcpy(&id, found + MNT_ID_OFFSET, sizeof id);
    if (mask & STATX_MNT_ID)
        return id;
    errno = EOPNOTSUPP;
    return 0;
}

// The lines of mountinfo, one after the other.
struct lines {
    int fd;
    size_t have, at;
    char text[LINE];
};

static struct lines lines; // not on the stack: a helper's is small

static int rewind_lines(void) {
    lines.have = lines.at = 0;
    return lseek(lines.fd, 0, SEEK_SET) < 0 ? -1 : 0;
}

// The next line, without its end; NULL at the end with errno 0, or with another one.
static char *next_line(void) {
    for (;;) {
        char *from = lines.text + lines.at, *end = memchr(from, '\n', lines.have - lines.at);
        if (end) {
            *end = 0;
            lines.at = (size_t)(end - lines.text) + 1;
            return from;
        }
        lines.have -= lines.at;
        memmove(lines.text, from, lines.have);
        lines.at = 0;
        if (lines.have == sizeof lines.text) {
            errno = ENAMETOOLONG;
            return NULL;
        }
        ssize_t n = read(lines.fd, lines.text + lines.have, sizeof lines.text - lines.have);
        if (n <= 0) {
            if (n == 0)
                errno = 0;
            return NULL;
        }
        lines.have += (size_t)n;
    }
}

static uint32_t below[MAX_MOUNTS];
static unsigned nbelow; // the first is the mount at the top

static bool is_below(unsigned long id) {
    for (unsigned i = 0; i < nbelow; i++)
        if (below[i] == id)
            return true;
    return false;
}

// One more look at all lines. How many were found, or -1.
static int find_more(void) {
    int found = 0;
    char *line, *end;
    if (rewind_lines() < 0)
        return -1;
    while ((line = next_line())) {
        unsigned long id = strtoul(line, &end, 10), parent = strtoul(end, NULL, 10);
        if (id == parent || !is_below(parent) || is_below(id))
            continue;
        if (nbelow == MAX_MOUNTS)
            return fail(E2BIG);
        below[nbelow++] = (uint32_t)id;
        found++;
    }
    return errno ? -1 : found;
}

// The fifth field of a line, with its escapes (space, tab, newline and backslash, as three octal digits) undone, in place.
static char *path_of(char *line) {
    for (int field = 0; field < 4; field++) {
        line = strchr(line, ' ');
        if (!line)
            return NULL;
        line++;
    }
    char *to = line, *from = line;
    while (*from && *from != ' ') {
        if (from[0] == '\\' && from[1] && from[2] && from[3]) {
            *to++ = (char)((from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0'));
            from += 4;
        } else {
            *to++ = *from++;
        }
    }
    *to = 0;
    return line;
}

// The paths of mountinfo begin at this process's root, which before pivot_root is not the container's: so `line`'s, whose mount
// is below that of `fd` at `top`, is followed from there.
static int set_by_line(int fd, const char *top, char *line, uint64_t set) {
    unsigned long id = strtoul(line, NULL, 10);
    const char *path = path_of(line);
    size_t length = strcmp(top, "/") == 0 ? 0 : strlen(top);
    if (!path || strncmp(path, top, length) != 0 || path[length] != '/' || !path[length + 1])
        return fail(path ? EBUSY : EBADMSG); // it lies on the very top: what it hides cannot be reached
    int at = openat2(fd, path + length + 1, O_PATH | O_NOFOLLOW, 0, X_RESOLVE_NO_SYMLINKS | X_RESOLVE_NO_MAGICLINKS);
    if (at < 0)
        return -1;
    uint64_t reached = mount_id(at);
    int result = reached == id ? set_one(at, set) : reached ? fail(EBUSY) : -1;
    int error = errno;
    close(at);
    errno = error;
    return result;
}

static char top_path[4096];

// Notes the path of the mount at the top.
static int find_top(void) {
    char *line;
    if (rewind_lines() < 0)
        return -1;
    while ((line = next_line())) {
        if (strtoul(line, NULL, 10) != below[0])
            continue;
        const char *path = path_of(line);
        if (!path || strlen(path) >= sizeof top_path)
            return fail(path ? ENAMETOOLONG : EBADMSG);
        strcpy(top_path, path);
        return 0;
    }
    return errno ? -1 : fail(ENOENT);
}

static int set_below(int fd, uint64_t set) {
    char *line;
    if (find_top() < 0 || rewind_lines() < 0)
        return -1;
    while ((line = next_line())) {
        unsigned long id = strtoul(line, NULL, 10);
        if (id != below[0] && is_below(id) && set_by_line(fd, top_path, line, set) < 0)
            return -1;
    }
    return errno ? -1 : 0;
}

static int set_all_below(int fd, uint64_t set) {
    uint64_t top = mount_id(fd);
    if (!top)
        return -1;
    lines.fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
    if (lines.fd < 0)
        return -1;
    below[0] = (uint32_t)top;
    nbelow = 1;
    int found;
    while ((found = find_more()) > 0)
        ;
    int result = found < 0 ? -1 : nbelow > 1 ? set_below(fd, set) : 0, error = errno;
    close(lines.fd);
    errno = error;
    return result;
}

int classic_set_attr(int fd, uint64_t set, uint64_t propagation, bool recursive) {
    if (set & ~(uint64_t)ATTRS)
        return fail(EINVAL);
    if (propagation && change(fd, (unsigned long)propagation | (recursive ? MS_REC : 0)) < 0)
        return -1;
    if (!set)
        return 0;
    return set_one(fd, set) < 0 ? -1 : recursive ? set_all_below(fd, set) : 0;
}
