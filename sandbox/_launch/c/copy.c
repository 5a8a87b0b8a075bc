// copy.c: copying a tree of files into another file system, for hosts on which nothing can be mounted over it.
//
// Theory of operation: directory by directory, each through descriptors of its own, so that no path is ever resolved and no
// symlink followed. The tree is somebody else's and may change meanwhile: each file is opened before it is looked at, and
// what has vanished is left out. The target is init's alone. There is no allocation; what is deep takes stack and descriptors.
#define _GNU_SOURCE
#include "copy.h"
#include "sys.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

enum { MOST_DEEP = 100 }; // two descriptors each, and 5 kB of stack
#define X_RESOLVE_NO_XDEV 0x01

struct entry {
    uint64_t inode, offset;
    uint16_t length;
    uint8_t type;
    char name[];
};

static int copy_directory(int from, int to, int deep);

static int close_both(int a, int b, int result) {
    int error = errno;
    if (a >= 0)
        close(a);
    if (b >= 0)
        close(b);
    errno = error;
    return result;
}

static bool is_unknown_id(void) {
    return errno == EINVAL || errno == EPERM;
}

// Owner first: a change of owner takes set-user-id bits away.
static int give_attributes(int fd, const struct stat *like) {
    struct timespec times[2] = {like->st_atim, like->st_mtim};
    if (fchown(fd, like->st_uid, like->st_gid) < 0 && !is_unknown_id())
        return -1;
    return fchmod(fd, like->st_mode & 07777) < 0 ? -1 : futimens(fd, times);
}

static int copy_data(int from, int to) {
    ssize_t n;
    while ((n = sendfile(to, from, NULL, 1 << 20)) > 0)
        ;
    return n < 0 ? -1 : 0;
}

static int copy_file(int from, int to, const char *name) {
    struct stat st;
    int in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (in < 0)
        return errno == ENOENT ? 0 : -1;
    if (fstat(in, &st) < 0)
        return close_both(in, -1, -1);
    if (!S_ISREG(st.st_mode)) // it was one a moment ago
        return close_both(in, -1, 0);
    int out = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (out < 0)
        return close_both(in, -1, errno == EEXIST ? 0 : -1);
    return close_both(in, out, copy_data(in, out) < 0 ? -1 : give_attributes(out, &st));
}

static int copy_link(int from, int to, const char *name, const struct stat *like) {
    char target[4096];
    ssize_t n = readlinkat(from, name, target, sizeof target - 1);
    if (n < 0)
        return errno == ENOENT || errno == EINVAL ? 0 : -1;
    target[n] = 0;
    if (symlinkat(target, to, name) < 0)
        return errno == EEXIST ? 0 : -1;
    return fchownat(to, name, like->st_uid, like->st_gid, AT_SYMLINK_NOFOLLOW) < 0 && !is_unknown_id() ? -1 : 0;
}

static int copy_fifo(int to, const char *name, const struct stat *like) {
    if (mkfifoat(to, name, like->st_mode & 0777) < 0)
        return errno == EEXIST ? 0 : -1;
    return fchownat(to, name, like->st_uid, like->st_gid, AT_SYMLINK_NOFOLLOW) < 0 && !is_unknown_id() ? -1 : 0;
}

static int copy_subdirectory(int from, int to, const char *name, int deep) {
    struct stat st;
    if (deep == 0)
        return errno = ELOOP, -1;
    int in = openat2(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0, X_RESOLVE_NO_XDEV | X_RESOLVE_NO_SYMLINKS);
    bool is_mount = in < 0 && errno == EXDEV;
    if (in < 0 && !is_mount)
        return errno == ENOENT || errno == ENOTDIR ? 0 : -1;
    bool is_new = mkdirat(to, name, 0700) == 0;
    if (!is_new && errno != EEXIST)
        return close_both(in, -1, -1);
    int out = openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (out < 0) // ours, and no directory: it covers this one
        return close_both(in, -1, errno == ENOTDIR || errno == ELOOP ? 0 : -1);
    if (is_mount)
        return close_both(in, out, is_new ? fchmod(out, 0755) : 0);
    int result = copy_directory(in, out, deep - 1);
    if (result == 0 && is_new)
        result = fstat(in, &st) < 0 ? -1 : give_attributes(out, &st);
    return close_both(in, out, result);
}

static int copy_entry(int from, int to, const char *name, int deep) {
    struct stat st;
    if (!strcmp(name, ".") || !strcmp(name, ".."))
        return 0;
    if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : -1;
    switch (st.st_mode & S_IFMT) {
    case S_IFDIR:
        return copy_subdirectory(from, to, name, deep);
    case S_IFREG:
        return copy_file(from, to, name);
    case S_IFLNK:
        return copy_link(from, to, name, &st);
    case S_IFIFO:
        return copy_fifo(to, name, &st);
    default:
        return 0;
    }
}

static int copy_directory(int from, int to, int deep) {
    char buffer[2048] __attribute__((aligned(8)));
    long n;
    while ((n = syscall(__NR_getdents64, from, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < n;) {
            const struct entry *entry = (const struct entry *)(buffer + at);
            if (copy_entry(from, to, entry->name, deep) < 0)
                return -1;
            at += entry->length;
        }
    return n < 0 ? -1 : 0;
}

int copy_tree(int from, int to) {
    int in = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int out = in < 0 ? -1 : openat(to, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return close_both(in, out, out < 0 ? -1 : copy_directory(in, out, MOST_DEEP));
}
