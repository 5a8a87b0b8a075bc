// tree.c: removes a tree of the container, in pieces.
//
// Theory of operation: programs may change the tree meanwhile, and have made it as they liked: deep, wide, with links. So
// one directory is open at a time, and children are opened without following a link or entering another mount. The way up
// is "..", and what is found there must be the directory that we came from, which a stack of device and inode numbers
// tells: a directory that a program has moved elsewhere leads to nothing that we would touch. What lies deeper than the stack
// is moved up to the top first. Init has other things to do: after BUDGET steps it stops, and is asked again.
#define _GNU_SOURCE
#include "tree.h"
#include "sys.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { DEPTH = 256, BUDGET = 1024, MOVES = 64 };
#define X_RESOLVE_NO_XDEV  0x01
#define X_RENAME_NOREPLACE 1

struct place {
    dev_t dev;
    ino_t ino;
};

struct walk {
    int top, at;     // the directory to be emptied, and the one that is looked at
    int depth, left; // of `at` below top; steps that may still be taken
    struct place places[DEPTH];
    char child[256]; // the last that sweep() found
};

struct entry {
    uint64_t ino;
    int64_t next;
    uint16_t length;
    uint8_t type;
    char name[];
};

static bool is_dot_or_dots(const char *name) {
    return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

// Removes one name that is no directory with something in it. 1: it is one; 0; -1 with errno.
static int remove_one(int at, const char *name, bool may_be_file) {
    if (may_be_file && unlinkat(at, name, 0) == 0)
        return 0;
    int error = may_be_file ? errno : EISDIR;
    if (error == ENOENT)
        return 0;
    if (error != EISDIR && error != EPERM) // POSIX has EPERM for a directory
        return errno = error, -1;
    if (unlinkat(at, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
        return 0;
    if (errno == ENOTEMPTY || errno == EEXIST)
        return 1;
    if (errno == ENOTDIR)
        errno = may_be_file ? error : EAGAIN; // exchanged meanwhile
    return -1;
}

static int open_child(int at, const char *name) {
    int fd = openat2(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0,
                     X_RESOLVE_NO_XDEV | X_RESOLVE_NO_SYMLINKS | X_RESOLVE_NO_MAGICLINKS);
    if (fd < 0 && errno == EXDEV)
        errno = EBUSY; // something is mounted there: as unlink(2) says
    else if (fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP))
        errno = EAGAIN; // exchanged meanwhile
    return fd;
}

// Removes what w->at has, up to a directory with something in it: 1, and its name. 0: it is empty. -1 with errno.
static int sweep(struct walk *w) {
    static uint8_t buffer[32768] __attribute__((aligned(8)));
    for (bool found = true; found;) {
        long n;
        found = false;
        if (lseek(w->at, 0, SEEK_SET) < 0)
            return -1;
        while ((n = syscall(__NR_getdents64, w->at, buffer, sizeof buffer)) > 0) {
            for (long i = 0; i < n;) {
                struct entry *e = (struct entry *)(buffer + i);
                i += e->length;
                if (is_dot_or_dots(e->name))
                    continue;
                if (w->left-- <= 0)
                    return errno = EAGAIN, -1;
                found = true; // some file systems pass entries over when others are removed: look again
                int result = remove_one(w->at, e->name, e->type != DT_DIR);
                if (result == 1 && strlen(e->name) >= sizeof w->child)
                    return errno = ENAMETOOLONG, -1; // only a FUSE server tells such names
                if (result == 1)
                    strcpy(w->child, e->name);
                if (result)
                    return result;
            }
        }
        if (n < 0)
            return -1;
    }
    return 0;
}

static void go(struct walk *w, int fd) {
    if (w->at != w->top)
        close(w->at);
    w->at = fd;
}

static int go_down(struct walk *w) {
    struct stat st;
    if (w->depth == DEPTH) {
        static unsigned long long number; // never the same twice: what was moved before may still be there
        char name[64];
        for (int tries = 0; tries < MOVES; tries++) {
            snprintf(name, sizeof name, ".sandbox-removed-%llu", number++);
            if (syscall(__NR_renameat2, w->at, w->child, w->top, name, X_RENAME_NOREPLACE) == 0)
                return 0;
            if (errno != EEXIST)
                return -1;
        }
        return errno = EAGAIN, -1; // somebody guesses our names; the next ones are others
    }
    if (fstat(w->at, &st) < 0)
        return -1;
    int fd = open_child(w->at, w->child);
    if (fd < 0)
        return -1;
    w->places[w->depth++] = (struct place){st.st_dev, st.st_ino};
    go(w, fd);
    return 0;
}

static int go_up(struct walk *w) {
    struct stat st;
    int fd = openat2(w->at, "..", O_RDONLY | O_DIRECTORY, 0, X_RESOLVE_NO_XDEV | X_RESOLVE_NO_SYMLINKS | X_RESOLVE_NO_MAGICLINKS);
    if (fd < 0)
        return errno = errno == ENOENT || errno == EXDEV ? EAGAIN : errno, -1;
    const struct place *from = &w->places[--w->depth];
    if (fstat(fd, &st) < 0 || st.st_dev != from->dev || st.st_ino != from->ino) {
        close(fd);
        return errno = EAGAIN, -1;
    }
    go(w, fd);
    return 0;
}

static int empty(int top) {
    static struct walk w;
    w.top = w.at = top;
    w.depth = 0;
    w.left = BUDGET;
    int result;
    do {
        result = sweep(&w);
        if (result == 0 && w.depth == 0)
            break;
        if (result >= 0)
            result = result ? go_down(&w) : go_up(&w);
        if (result == 0 && w.left-- <= 0)
            result = (errno = EAGAIN, -1);
    } while (result == 0);
    int error = errno;
    go(&w, top);
    errno = error;
    return result;
}

int tree_remove(int parent, const char *name, bool recursive) {
    // Not remove_one: that something is not there is the caller's to know.
    if (unlinkat(parent, name, 0) == 0)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return -1;
    int error = errno;
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0)
        return 0;
    if (errno == ENOTDIR)
        errno = error;
    if (!recursive || (errno != ENOTEMPTY && errno != EEXIST))
        return -1;
    int top = open_child(parent, name);
    if (top < 0)
        return -1;
    int result = empty(top);
    error = errno;
    close(top);
    errno = error;
    if (result == 0 && unlinkat(parent, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
        result = errno == ENOTEMPTY || errno == EEXIST ? (errno = EAGAIN, -1) : -1;
    return result;
}
