// ops.c: the plan's operations, carried out one by one.
//
// Theory of operation: an operation is (u16 code, u16 flags, u32 length, body). Each has one function below, which
// reads its body completely before it touches anything. Descriptors live in numbered slots. Paths are resolved by
// openat2: below a slot they cannot leave it, whatever links lie inside; without a slot they are the process's own.
#define _GNU_SOURCE
#include "ops.h"
#include "below.h"
#include "classic.h"
#include "copy.h"
#include "sys.h"
#include "tree.h"

#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

enum { FLAG_OPTIONAL = 1, MOST_DATA = 1 << 20 };
static const uint32_t NO_ID = 0xFFFFFFFF;

typedef int op_fn(struct ops *o, struct reader *r);

static int fail(int error) {
    errno = error;
    return -1;
}

static int slot_get(struct ops *o, uint16_t slot) {
    if (slot == NO_SLOT)
        return AT_FDCWD;
    if (slot > SLOT_ROLE_BASE && slot < SLOT_ROLE_BASE + ROLES)
        return o->roles[slot - SLOT_ROLE_BASE];
    return slot < SLOTS ? o->slots[slot] : -1;
}

static int slot_put(struct ops *o, uint16_t slot, int fd) {
    if (fd < 0)
        return -1;
    if (slot >= SLOTS) {
        close(fd);
        return fail(EPROTO);
    }
    if (o->slots[slot] >= 0)
        close(o->slots[slot]);
    o->slots[slot] = fd;
    return 0;
}

static void forget_parent(struct ops *o) {
    if (o->parent >= 0)
        close(o->parent);
    o->parent = -1;
}

// Splits `path` into its parent, opened below `dir`, and its last name. Refuses "", ".", ".." and "/" as that name.
// The descriptor is kept for the next operation, most of which stay in one directory; it is forgotten before any
// operation that could change what the path leads to, so it stays the caller's to use and not to close.
static int open_parent(struct ops *o, int dir, const char *path, const char **name) {
    char parent[4096];
    const char *slash = strrchr(path, '/');
    *name = slash ? slash + 1 : path;
    size_t length = slash ? (size_t)(slash - path) : 0;
    if (length >= sizeof parent)
        return fail(ENAMETOOLONG);
    if (!**name || !strcmp(*name, ".") || !strcmp(*name, ".."))
        return fail(EINVAL);
    memcpy(parent, path, length);
    parent[length] = 0;
    const char *from = length ? parent : (slash || dir == AT_FDCWD) ? "/" : ".";
    if (o->parent >= 0 && o->parent_of == dir && !strcmp(from, o->parent_path))
        return o->parent;
    forget_parent(o);
    int fd = open_below(dir, from, O_PATH | O_DIRECTORY, 0, 0);
    if (fd >= 0) {
        o->parent = fd;
        o->parent_of = dir;
        o->parent_path[0] = 0; // a long path is not kept
        if (strlen(from) < sizeof o->parent_path)
            strcpy(o->parent_path, from);
    }
    return fd;
}

// Gives a directory just made its owner and mode. By a descriptor: a program may exchange the name meanwhile.
static int adopt_dir(int parent, const char *name, uint32_t mode, uint32_t uid, uint32_t gid) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int result = uid == NO_ID && gid == NO_ID ? 0 : fchown(fd, uid, gid);
    if (result == 0)
        result = fchmod(fd, mode);
    int error = errno;
    close(fd);
    errno = error;
    return result;
}

static int op_unshare(struct ops *o, struct reader *r) {
    (void)o;
    uint64_t flags = rd_uint64(r);
    return r->bad ? fail(EPROTO) : (int)syscall(__NR_unshare, flags);
}

static int op_hostname(struct ops *o, struct reader *r) {
    (void)o;
    const char *name = rd_str(r);
    return r->bad ? fail(EPROTO) : sethostname(name, strlen(name));
}

static int op_domainname(struct ops *o, struct reader *r) {
    (void)o;
    const char *name = rd_str(r);
    return r->bad ? fail(EPROTO) : setdomainname(name, strlen(name));
}

int loopback_up(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0)
        return -1;
    int result = ioctl(sock, SIOCSIFFLAGS, &request), error = errno;
    close(sock);
    errno = error;
    return result;
}

static int op_loopback_up(struct ops *o, struct reader *r) {
    (void)o, (void)r;
    return loopback_up();
}

static int op_make_private(struct ops *o, struct reader *r) {
    (void)o, (void)r;
    return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

enum { OPTION_FLAG = 0, OPTION_TEXT = 1, OPTION_FD_PATH = 2 };

static int configure(struct ops *o, int fs, struct reader *r) {
    uint8_t kind = rd_uint8(r);
    const char *key = rd_str(r);
    if (kind == OPTION_FLAG)
        return r->bad ? fail(EPROTO) : (int)syscall(__NR_fsconfig, fs, FSC_SET_FLAG, key, NULL, 0);
    char path[300];
    const char *value = path;
    if (kind == OPTION_FD_PATH) {
        uint16_t slot = rd_uint16(r);
        const char *suffix = rd_str(r);
        int fd = slot_get(o, slot);
        if (r->bad || fd < 0)
            return fail(EPROTO);
        if (snprintf(path, sizeof path, "/proc/self/fd/%d%s", fd, suffix) >= (int)sizeof path)
            return fail(ENAMETOOLONG);
    } else {
        value = rd_str(r);
    }
    return r->bad ? fail(EPROTO) : (int)syscall(__NR_fsconfig, fs, FSC_SET_STRING, key, value, 0);
}

// Makes a detached mount of `type` with `count` options.
static int new_mount(struct ops *o, const char *type, uint32_t attrs, uint32_t count, struct reader *r) {
    int fs = (int)syscall(__NR_fsopen, type, X_FSOPEN_CLOEXEC);
    if (fs < 0)
        return -1;
    int result = 0;
    for (uint32_t i = 0; i < count && result == 0; i++)
        result = configure(o, fs, r);
    if (result == 0)
        result = (int)syscall(__NR_fsconfig, fs, FSC_CMD_CREATE, NULL, NULL, 0);
    if (result == 0)
        result = (int)syscall(__NR_fsmount, fs, X_FSMOUNT_CLOEXEC, attrs);
    int error = errno;
    close(fs);
    errno = error;
    return result;
}

static int op_new_fs(struct ops *o, struct reader *r) {
    uint16_t out = rd_uint16(r);
    const char *type = rd_str(r);
    uint32_t attrs = rd_uint32(r), count = rd_uint32(r);
    return r->bad ? fail(EPROTO) : slot_put(o, out, new_mount(o, type, attrs, count, r));
}

// What mount(2) takes as its options: less than a page, the kernel copies no more.
struct options {
    char text[4096];
    size_t length;
};

static int add_option(struct options *to, const char *before, const char *key, const char *value) {
    size_t room = sizeof to->text - to->length;
    int n = snprintf(to->text + to->length, room, "%s%s%s%s", before, key, value ? "=" : "", value ? value : "");
    if (n < 0 || (size_t)n >= room)
        return fail(E2BIG);
    to->length += (size_t)n;
    return 0;
}

// A lower layer gets a short name: a link to it, a number, in the directory where all are.
static int add_lower(struct options *lowers, int at, const char *path) {
    char name[12];
    static uint32_t number; // never twice the same, whatever `at` is
    snprintf(name, sizeof name, "%u", number++);
    if (symlinkat(path, at, name) < 0)
        return -1;
    return add_option(lowers, lowers->length ? ":" : "lowerdir=", name, NULL);
}

static int add_overlay_option(struct ops *o, struct options *lowers, struct options *others, int at, struct reader *r) {
    uint8_t kind = rd_uint8(r);
    const char *key = rd_str(r), *value = NULL;
    char path[300];
    if (kind == OPTION_FD_PATH) {
        int fd = slot_get(o, rd_uint16(r));
        const char *suffix = rd_str(r);
        if (r->bad || fd < 0)
            return fail(EPROTO);
        if (snprintf(path, sizeof path, "/proc/self/fd/%d%s", fd, suffix) >= (int)sizeof path)
            return fail(ENAMETOOLONG);
        value = path;
    } else if (kind != OPTION_FLAG) {
        value = rd_str(r);
    }
    if (r->bad)
        return fail(EPROTO);
    if (!strcmp(key, "lowerdir+"))
        return value ? add_lower(lowers, at, value) : fail(EPROTO);
    if (value && strpbrk(value, ",\\"))
        return fail(EINVAL);
    return add_option(others, ",", key, value);
}

// Mounts by mount(2), on `at`/mount, and takes a copy of that mount as new_mount would have made it.
static int mount_at(int at, const char *options, uint32_t attrs) {
    const unsigned long flags = (attrs & 0xF) | (attrs & X_MOUNT_ATTR_NOATIME ? MS_NOATIME : 0); // the first four are MS_* too
    int before = openat(AT_FDCWD, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (before < 0)
        return -1;
    int result = fchdir(at);
    if (result == 0 && (result = mkdirat(at, "mount", 0700)) < 0 && errno == EEXIST)
        result = 0;
    if (result == 0)
        result = mount("overlay", "mount", "overlay", flags, options);
    if (result == 0) {
        result = open_tree_(at, "mount", X_OPEN_TREE_CLONE);
        int error = errno;
        if (umount2("mount", MNT_DETACH | UMOUNT_NOFOLLOW) < 0 && result >= 0) {
            error = errno;
            close(result);
            result = -1;
        }
        errno = error;
    }
    int error = errno;
    if (fchdir(before) < 0 && result >= 0) {
        error = errno;
        close(result);
        result = -1;
    }
    close(before);
    errno = error;
    return result;
}

// For kernels that know no lowerdir+: all layers in one option, which is too long for fsconfig(2) as text and in any case for a
// page, unless their names are short.
static int classic_overlay(struct ops *o, int at, uint32_t attrs, uint32_t count, struct reader *r) {
    static struct options lowers, others;
    lowers.length = others.length = 0;
    for (uint32_t i = 0; i < count; i++)
        if (add_overlay_option(o, &lowers, &others, at, r) < 0)
            return -1;
    if (add_option(&lowers, others.length ? others.text : "", "", NULL) < 0)
        return -1;
    return mount_at(at, lowers.text, attrs);
}

static void skip_options(struct reader *r, uint32_t count) {
    for (uint32_t i = 0; i < count && !r->bad; i++) {
        uint8_t kind = rd_uint8(r);
        rd_str(r);
        if (kind == OPTION_FD_PATH)
            rd_uint16(r);
        if (kind != OPTION_FLAG)
            rd_str(r);
    }
}

static int op_new_overlay(struct ops *o, struct reader *r) {
    uint16_t out = rd_uint16(r);
    int place = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r);
    uint8_t classic = rd_uint8(r);
    uint32_t attrs = rd_uint32(r), count = rd_uint32(r);
    struct reader options = *r, again = *r;
    skip_options(r, count); // whichever of the two ways is gone, and however far
    if (r->bad || place < 0)
        return fail(EPROTO);
    int made = classic ? -1 : new_mount(o, "overlay", attrs, count, &options);
    // An older kernel does not know lowerdir+, and says so when it is told (6.5 rejects it at once) or at last, when it makes the
    // mount.
    if (classic || (made < 0 && errno == EINVAL)) {
        int at = open_below(place, path, O_PATH | O_DIRECTORY, 0, 0);
        if (at < 0)
            return -1;
        made = classic_overlay(o, at, attrs, count, &again);
        int error = errno;
        close(at);
        errno = error;
    }
    return slot_put(o, out, made);
}

static int attach_fd(int mount_fd, int dir, const char *path) {
    int target = open_below(dir, path, O_PATH, 0, 0);
    if (target < 0)
        return -1;
    int result = move_mount_(mount_fd, target), error = errno;
    close(target);
    errno = error;
    return result;
}

static int op_attach(struct ops *o, struct reader *r) {
    int fd = slot_get(o, rd_uint16(r));
    int dir = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r);
    if (r->bad || fd < 0 || dir == -1)
        return fail(EPROTO);
    return attach_fd(fd, dir, path);
}

static int op_open(struct ops *o, struct reader *r) {
    uint16_t out = rd_uint16(r);
    int dir = slot_get(o, rd_uint16(r));
    uint16_t same_slot = rd_uint16(r);
    const char *path = rd_str(r);
    uint64_t flags = rd_uint64(r), mode = rd_uint64(r), resolve = rd_uint64(r);
    if (r->bad || dir == -1)
        return fail(EPROTO);
    int fd = open_below(dir, path, flags, mode, resolve);
    if (fd < 0)
        return -1;
    if (same_slot != NO_SLOT) {
        struct stat a, b;
        int other = slot_get(o, same_slot);
        if (other < 0 || fstat(other, &a) < 0 || fstat(fd, &b) < 0 || a.st_dev != b.st_dev || a.st_ino != b.st_ino) {
            close(fd);
            return fail(ESTALE);
        }
    }
    return slot_put(o, out, fd);
}

static int clone_tree(int src, const char *path, bool recursive) {
    unsigned flags = X_OPEN_TREE_CLONE | (recursive ? X_AT_RECURSIVE : 0);
    if (!*path && src != AT_FDCWD)
        return open_tree_(src, "", flags | AT_EMPTY_PATH);
    int at = open_below(src, path, O_PATH, 0, 0);
    if (at < 0)
        return -1;
    int fd = open_tree_(at, "", flags | AT_EMPTY_PATH), error = errno;
    close(at);
    errno = error;
    return fd;
}

static int op_clone_tree(struct ops *o, struct reader *r) {
    uint16_t out = rd_uint16(r);
    int src = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r);
    uint8_t recursive = rd_uint8(r);
    if (r->bad || src == -1)
        return fail(EPROTO);
    return slot_put(o, out, clone_tree(src, path, recursive));
}

static int op_set_attr(struct ops *o, struct reader *r) {
    int fd = slot_get(o, rd_uint16(r));
    struct x_mount_attr attr = {0};
    attr.attr_set = rd_uint64(r);
    attr.attr_clr = rd_uint64(r);
    attr.propagation = rd_uint64(r);
    uint8_t recursive = rd_uint8(r), idmap = rd_uint8(r), classic = rd_uint8(r);
    if (r->bad || fd < 0 || (idmap && o->userns < 0) || (classic && (idmap || attr.attr_clr)))
        return fail(EPROTO);
    if (classic)
        return classic_set_attr(fd, attr.attr_set, attr.propagation, recursive);
    if (idmap) {
        attr.attr_set |= X_MOUNT_ATTR_IDMAP;
        attr.userns_fd = (uint64_t)o->userns;
    }
    return mount_setattr_(fd, recursive ? X_AT_RECURSIVE : 0, &attr);
}

static int op_make_dir(struct ops *o, struct reader *r) {
    int dir = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r), *name;
    uint32_t mode = rd_uint32(r), uid = rd_uint32(r), gid = rd_uint32(r);
    if (r->bad || dir == -1)
        return fail(EPROTO);
    int parent = open_parent(o, dir, path, &name);
    if (parent < 0)
        return -1;
    struct stat st;
    bool owned = uid != NO_ID || gid != NO_ID;
    int result = mkdirat(parent, name, owned ? 0700 : mode); // init's umask is 0
    if (result == 0) {
        if (owned || mode & 07000)
            result = adopt_dir(parent, name, mode, uid, gid);
    } else if (errno == EEXIST && fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        result = S_ISDIR(st.st_mode) ? 0 : fail(ENOTDIR);
    }
    return result;
}

// Gives a symlink just made its owner. By a descriptor, as above.
static int adopt_link(int parent, const char *name, uint32_t uid, uint32_t gid) {
    struct stat st;
    int fd = openat(parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int result = fstat(fd, &st);
    if (result == 0)
        result = S_ISLNK(st.st_mode) ? fchownat(fd, "", uid, gid, AT_EMPTY_PATH) : fail(EEXIST);
    int error = errno;
    close(fd);
    errno = error;
    return result;
}

static int op_symlink(struct ops *o, struct reader *r) {
    int dir = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r), *target = rd_str(r), *name;
    uint32_t uid = rd_uint32(r), gid = rd_uint32(r);
    if (r->bad || dir == -1)
        return fail(EPROTO);
    int parent = open_parent(o, dir, path, &name);
    if (parent < 0)
        return -1;
    if (symlinkat(target, parent, name) < 0)
        return -1;
    return uid == NO_ID && gid == NO_ID ? 0 : adopt_link(parent, name, uid, gid);
}

// What is to be written: bytes of the message, or, with a descriptor, `size` bytes from `start` on of a file.
struct content {
    struct reader bytes;
    int fd;
    uint64_t start, size;
};

static struct content content_of(struct reader bytes) {
    return (struct content){.bytes = bytes, .fd = -1, .size = (uint64_t)(bytes.end - bytes.at)};
}

static int write_bytes(int fd, struct reader data, uint64_t at) {
    while (data.at < data.end) {
        ssize_t n = pwrite(fd, data.at, (size_t)(data.end - data.at), (off_t)at);
        if (n < 0)
            return -1;
        data.at += n;
        at += (uint64_t)n;
    }
    return 0;
}

static int write_all(int fd, struct content c, uint64_t at) {
    static uint8_t buffer[65536];
    if (c.fd < 0)
        return write_bytes(fd, c.bytes, at);
    while (c.size > 0) {
        ssize_t n = pread(c.fd, buffer, c.size < sizeof buffer ? (size_t)c.size : sizeof buffer, (off_t)c.start);
        if (n <= 0)
            return n < 0 ? -1 : fail(EPROTO); // it has less than was said
        if (write_bytes(fd, reader_of(buffer, (size_t)n), at) < 0)
            return -1;
        at += (uint64_t)n;
        c.start += (uint64_t)n;
        c.size -= (uint64_t)n;
    }
    return 0;
}

// The file itself, new or emptied. *fresh: it is new, with the mode that was asked for. What is there is opened without O_CREAT:
// with it, the kernel refuses another's file in a sticky directory that all may write to, where fs.protected_regular is set as
// systemd does.
static int open_new(int parent, const char *name, uint32_t mode, bool *fresh) {
    const int flags = O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int fd = openat(parent, name, flags | O_CREAT | O_EXCL, mode);
    *fresh = fd >= 0;
    if (fd >= 0 || errno != EEXIST)
        return fd;
    fd = openat(parent, name, flags);
    // Gone meanwhile, or it runs: whoever runs it keeps the old one.
    if (fd < 0 && (errno == ENOENT || (errno == ETXTBSY && unlinkat(parent, name, 0) == 0))) {
        fd = openat(parent, name, flags | O_CREAT | O_EXCL, mode);
        *fresh = fd >= 0;
    }
    return fd;
}

static const uint64_t NEW_FILE = UINT64_MAX;

// Writes to an open file. Only a regular file is ever written to or changed.
static int fill(int fd, struct content c, uint64_t offset, bool fresh) {
    struct stat st;
    if (fresh)
        return write_all(fd, c, 0);
    if (fstat(fd, &st) < 0)
        return -1;
    if (!S_ISREG(st.st_mode))
        return fail(EINVAL);
    if (offset == NEW_FILE)
        return ftruncate(fd, 0) < 0 ? -1 : write_all(fd, c, 0);
    if (c.size == 0 && offset > (uint64_t)st.st_size)
        return ftruncate(fd, (off_t)offset);
    return write_all(fd, c, offset);
}

// The fields that come before the data, in both operations.
struct file {
    int dir;
    const char *path;
    uint32_t mode, uid, gid;
    uint64_t offset;
};

static struct file read_file(struct ops *o, struct reader *r) {
    struct file f = {.dir = slot_get(o, rd_uint16(r))};
    f.path = rd_str(r);
    f.mode = rd_uint32(r);
    f.uid = rd_uint32(r);
    f.gid = rd_uint32(r);
    f.offset = rd_uint64(r);
    return f;
}

static int write_file(struct ops *o, struct file f, struct content c) {
    const char *name;
    int parent = open_parent(o, f.dir, f.path, &name);
    if (parent < 0)
        return -1;
    bool owned = f.uid != NO_ID || f.gid != NO_ID, fresh = false;
    int fd = f.offset == NEW_FILE ? open_new(parent, name, owned ? 0600 : f.mode, &fresh)
                                  : openat(parent, name, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int result = fill(fd, c, f.offset, fresh);
    if (result == 0 && owned)
        result = fchown(fd, f.uid, f.gid);
    if (result == 0 && (owned || !fresh)) // after the owner, whose change takes set-id bits away
        result = fchmod(fd, f.mode);
    int error = errno;
    close(fd);
    errno = error;
    return result;
}

static int op_write_file(struct ops *o, struct reader *r) {
    struct file f = read_file(o, r);
    struct reader data = rd_block(r);
    if (r->bad || f.dir == -1)
        return fail(EPROTO);
    return write_file(o, f, content_of(data));
}

static int op_write_from(struct ops *o, struct reader *r) {
    struct file f = read_file(o, r);
    struct content c = {.fd = slot_get(o, rd_uint16(r))};
    c.start = rd_uint64(r);
    c.size = rd_uint32(r);
    if (r->bad || f.dir == -1 || c.fd < 0 || c.size > MOST_DATA)
        return fail(EPROTO);
    return write_file(o, f, c);
}

static int op_set_times(struct ops *o, struct reader *r) {
    int dir = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r), *name;
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}};
    times[1].tv_sec = (time_t)rd_uint64(r);
    times[1].tv_nsec = rd_uint32(r);
    if (r->bad || dir == -1)
        return fail(EPROTO);
    int parent = open_parent(o, dir, path, &name);
    if (parent < 0)
        return -1;
    return utimensat(parent, name, times, AT_SYMLINK_NOFOLLOW);
}

// One step of op_make_target: go into (making it first if need be) the next directory of the path.
static int descend(int at, const char *name) {
    if (mkdirat(at, name, 0755) < 0 && errno != EEXIST)
        return -1;
    return openat2(at, name, O_PATH | O_DIRECTORY, 0, X_RESOLVE_IN_ROOT | X_RESOLVE_NO_MAGICLINKS | X_RESOLVE_NO_SYMLINKS);
}

static int make_last(int at, const char *name, bool directory) {
    struct stat st;
    if (fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        if (S_ISLNK(st.st_mode))
            return fail(ELOOP);
        return directory == !!S_ISDIR(st.st_mode) ? 0 : fail(directory ? ENOTDIR : EISDIR);
    }
    if (errno != ENOENT)
        return -1;
    if (directory)
        return mkdirat(at, name, 0755);
    int fd = openat(at, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    return fd < 0 ? -1 : close(fd);
}

// Walks name by name. A symlink in the middle is resolved once, inside the root, and must lead to a directory; as the
// last name it is refused: what is mounted must be where the caller said (CVE-2019-16884).
static int op_make_target(struct ops *o, struct reader *r) {
    uint16_t slot = rd_uint16(r);
    int root = slot_get(o, slot), like = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r);
    struct stat st;
    char part[256], done[4096] = "";
    if (r->bad || root < 0 || like < 0 || strlen(path) >= sizeof done)
        return fail(EPROTO);
    if (fstat(like, &st) < 0)
        return -1;
    int at = openat(root, ".", O_PATH | O_DIRECTORY | O_CLOEXEC), result = -1;
    while (at >= 0) {
        path += strspn(path, "/");
        size_t length = strcspn(path, "/");
        if (length == 0 || length >= sizeof part) {
            errno = EINVAL;
            break;
        }
        memcpy(part, path, length);
        part[length] = 0;
        path += length;
        if (!path[strspn(path, "/")]) {
            result = make_last(at, part, S_ISDIR(st.st_mode));
            break;
        }
        strcat(strcat(done, "/"), part);
        int next = descend(at, part);
        if (next < 0 && errno == ELOOP)
            next = open_below(root, done, O_PATH | O_DIRECTORY, 0, 0);
        int error = errno;
        close(at);
        errno = error;
        at = next;
    }
    int error = errno;
    if (at >= 0)
        close(at);
    errno = error;
    return result;
}

// Whether the topmost mount at the process's root is the root's own: what "/.." leads to, for ".." climbs onto it.
static int root_is_topmost(int root) {
    struct statx a, b;
    const unsigned mask = STATX_INO | 0x1000 /* STATX_MNT_ID, since v5.8 */;
    if (statx(AT_FDCWD, "/..", AT_NO_AUTOMOUNT, mask, &a) < 0 || statx(root, "", AT_EMPTY_PATH, mask, &b) < 0)
        return -1;
    if (!(a.stx_mask & b.stx_mask & 0x1000))
        return fail(ENOSYS);
    return a.stx_mnt_id == b.stx_mnt_id;
}

static int op_pivot(struct ops *o, struct reader *r) {
    int root = slot_get(o, rd_uint16(r));
    if (r->bad || root < 0)
        return fail(EPROTO);
    // pivot_root(2): with "." as both, the old root ends up on top of the new one, with whatever was mounted on it. All
    // of that must go: as long as anything lies there, ".." of the root leads into it.
    if (fchdir(root) < 0 || syscall(__NR_pivot_root, ".", ".") < 0)
        return -1;
    for (int tries = 0; tries < 64; tries++) {
        int done = root_is_topmost(root);
        if (done < 0)
            return -1;
        if (done)
            return (o->in_root = chdir("/") == 0) ? 0 : -1;
        if (umount2("/..", MNT_DETACH) < 0)
            return -1;
    }
    return fail(ELOOP);
}

static int op_chdir(struct ops *o, struct reader *r) {
    const char *path = rd_str(r);
    o->in_root = false;
    return r->bad ? fail(EPROTO) : chdir(path);
}

static int op_write_proc(struct ops *o, struct reader *r) {
    int dir = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r);
    struct reader data = rd_block(r);
    if (r->bad || dir == -1)
        return fail(EPROTO);
    // The files of a process that is not dumpable belong to the host's root, those of init's own /proc/self too.
    bool own = o->setup && !strncmp(path, "self/", 5);
    if (own)
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    int fd = open_below(dir, path, O_WRONLY, 0, 0);
    if (own && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) {
        if (fd >= 0)
            close(fd);
        return fail(EPERM);
    }
    if (fd < 0)
        return -1;
    // One write: procfs takes a value whole or not at all.
    ssize_t n = write(fd, data.at, (size_t)(data.end - data.at));
    int error = n == data.end - data.at ? 0 : n < 0 ? errno : EIO;
    close(fd);
    return error ? fail(error) : 0;
}

static int op_drop_bounding(struct ops *o, struct reader *r) {
    (void)o;
    uint64_t keep = rd_uint64(r);
    if (r->bad)
        return fail(EPROTO);
    for (int cap = 0; cap < 64; cap++) {
        if (keep >> cap & 1)
            continue;
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) {
            if (errno == EINVAL)
                break; // past the last capability of this kernel
            return -1;
        }
    }
    return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
}

static int op_no_new_privs(struct ops *o, struct reader *r) {
    (void)o, (void)r;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static int op_landlock(struct ops *o, struct reader *r) {
    struct {
        uint64_t fs, net, scoped;
    } attr;
    attr.fs = rd_uint64(r); // one by one: the order within an initializer list is the compiler's
    attr.net = rd_uint64(r);
    attr.scoped = rd_uint64(r);
    uint32_t count = rd_uint32(r);
    if (r->bad)
        return fail(EPROTO);
    // An older kernel refuses a longer structure unless the rest is zero: pass what is used.
    size_t size = attr.scoped ? 24 : attr.net ? 16 : 8;
    int ruleset = (int)syscall(__NR_landlock_create_ruleset, &attr, size, 0);
    if (ruleset < 0)
        return -1;
    int result = 0;
    for (uint32_t i = 0; i < count && result == 0; i++) {
        struct {
            uint64_t allowed;
            int32_t fd;
        } __attribute__((packed)) rule;
        rule.fd = slot_get(o, rd_uint16(r));
        rule.allowed = rd_uint64(r);
        if (r->bad || rule.fd < 0)
            result = fail(EPROTO);
        else
            result = (int)syscall(__NR_landlock_add_rule, ruleset, 1 /* LANDLOCK_RULE_PATH_BENEATH */, &rule, 0);
    }
    if (result == 0)
        result = (int)syscall(__NR_landlock_restrict_self, ruleset, 0);
    int error = errno;
    close(ruleset);
    errno = error;
    return result;
}

// Copies a filter; returns how many instructions it has, 0 when it is none.
static unsigned take_filter(struct sock_filter *to, struct reader from) {
    size_t size = (size_t)(from.end - from.at);
    if (size % sizeof *to || size / sizeof *to > BPF_MAXINSNS)
        return 0;
    memcpy(to, from.at, size);
    return (unsigned)(size / sizeof *to);
}

// In a traceless container's filter, two constants stand for the number by which init passes. It is chosen here: no plan,
// no process and no file has it.
static int set_token(struct sock_filter *program, unsigned length) {
    uint32_t half[2];
    if (syscall(__NR_getrandom, half, sizeof half, 0) != (long)sizeof half)
        return -1;
    for (unsigned i = 0; i < length; i++)
        if (program[i].code == (BPF_JMP | BPF_JEQ | BPF_K) && (program[i].k == TOKEN_HIGH || program[i].k == TOKEN_LOW))
            program[i].k = half[program[i].k == TOKEN_LOW];
    own_token = (uint64_t)half[0] << 32 | half[1];
    return 0;
}

static int op_seccomp(struct ops *o, struct reader *r) {
    uint32_t flags = rd_uint32(r);
    uint8_t listen = rd_uint8(r);
    struct reader code = rd_block(r), policy = rd_block(r);
    static struct sock_filter program[BPF_MAXINSNS], asked[BPF_MAXINSNS]; // the kernel wants it aligned
    unsigned length, npolicy = 0;
    bool traceless = policy.at != policy.end;
    if (r->bad || !(length = take_filter(program, code)) || (traceless && !(npolicy = take_filter(asked, policy))))
        return fail(EPROTO);
    if (flags & SECCOMP_FILTER_FLAG_NEW_LISTENER || (listen && o->notify >= 0) || (traceless && !listen))
        return fail(EPROTO); // a listener is asked for by `listen`, and there is one
    if (traceless) {
        if (set_token(program, length) < 0)
            return -1;
        o->policy = asked;
        o->npolicy = npolicy;
    }
    struct sock_fprog filter = {(unsigned short)length, program};
    if (listen)
        flags |= SECCOMP_FILTER_FLAG_NEW_LISTENER;
    int fd = (int)syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
    if (fd < 0)
        return -1;
    if (listen)
        o->notify = fd;
    return 0;
}

static int op_close(struct ops *o, struct reader *r) {
    uint16_t slot = rd_uint16(r);
    if (r->bad || slot >= SLOTS || o->slots[slot] < 0)
        return fail(EPROTO);
    close(o->slots[slot]);
    o->slots[slot] = -1;
    return 0;
}

static int op_mask(struct ops *o, struct reader *r) {
    int dir = slot_get(o, rd_uint16(r)), file = slot_get(o, rd_uint16(r)), empty = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r);
    struct stat st;
    if (r->bad || dir < 0 || file < 0 || empty < 0)
        return fail(EPROTO);
    int target = open_below(dir, path, O_PATH, 0, 0);
    if (target < 0)
        return errno == ENOENT ? 0 : -1;
    int copy = -1, result = fstat(target, &st);
    if (result == 0)
        copy = clone_tree(S_ISDIR(st.st_mode) ? empty : file, "", false);
    result = copy < 0 ? -1 : move_mount_(copy, target);
    int error = errno;
    if (copy >= 0)
        close(copy);
    close(target);
    errno = error;
    return result;
}

static int op_read_only_path(struct ops *o, struct reader *r) {
    int dir = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r);
    uint8_t classic = rd_uint8(r);
    if (r->bad || dir < 0)
        return fail(EPROTO);
    int target = open_below(dir, path, O_PATH, 0, 0);
    if (target < 0)
        return errno == ENOENT ? 0 : -1;
    struct x_mount_attr attr = {.attr_set = X_MOUNT_ATTR_RDONLY};
    int copy = clone_tree(target, "", true), result = -1;
    if (copy >= 0)
        result = classic ? 0 : mount_setattr_(copy, X_AT_RECURSIVE, &attr);
    if (result == 0)
        result = move_mount_(copy, target);
    if (result == 0 && classic)
        result = classic_set_attr(copy, attr.attr_set, 0, true);
    int error = errno;
    if (copy >= 0)
        close(copy);
    close(target);
    errno = error;
    return result;
}

static int op_sethook(struct ops *o, struct reader *r) {
    int fd = slot_get(o, rd_uint16(r));
    uint32_t role = rd_uint32(r);
    if (r->bad || fd < 0 || role == 0 || role >= ROLES)
        return fail(EPROTO);
    // An O_PATH copy: it can be walked from, and pins nothing but the mount.
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0)
        return -1;
    if (o->roles[role] >= 0)
        close(o->roles[role]);
    o->roles[role] = copy;
    return 0;
}

static int op_bind_mount(struct ops *o, struct reader *r) {
    int fd = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r);
    char from[64];
    if (r->bad || fd < 0)
        return fail(EPROTO);
    snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
    return mount(from, path, NULL, MS_BIND, NULL);
}

static int op_setns(struct ops *o, struct reader *r) {
    int fd = slot_get(o, rd_uint16(r));
    uint32_t kind = rd_uint32(r);
    o->in_root = false; // a mount namespace brings a root of its own
    return r->bad || fd < 0 ? fail(EPROTO) : setns(fd, (int)kind);
}

static int op_socket(struct ops *o, struct reader *r) {
    uint16_t out = rd_uint16(r);
    uint32_t domain = rd_uint32(r), type = rd_uint32(r), protocol = rd_uint32(r);
    if (r->bad)
        return fail(EPROTO);
    return slot_put(o, out, socket((int)domain, (int)type | SOCK_CLOEXEC, (int)protocol));
}

static int op_link_program(struct ops *o, struct reader *r) {
    uint16_t out = rd_uint16(r);
    int program = slot_get(o, rd_uint16(r));
    uint32_t interface = rd_uint32(r), where = rd_uint32(r);
    if (r->bad || program < 0)
        return fail(EPROTO);
    union bpf_attr asked;
    memset(&asked, 0, sizeof asked);
    asked.link_create.prog_fd = (uint32_t)program;
    asked.link_create.target_fd = interface; // one place for either
    asked.link_create.attach_type = where;
    return slot_put(o, out, (int)syscall(__NR_bpf, BPF_LINK_CREATE, &asked, sizeof asked));
}

// What the kernel says to messages of netlink: it has carried them out, and answered, by the time send(2) returns. If an
// answer was lost, there is none to wait for.
static int netlink_answer(int sock, uint32_t last) {
    struct {
        struct nlmsghdr head;
        struct nlmsgerr body;
    } answer;
    int failed = 0;
    do {
        ssize_t n = recv(sock, &answer, sizeof answer, MSG_DONTWAIT);
        if (n < 0)
            return -1;
        if ((size_t)n < sizeof answer || answer.head.nlmsg_type != NLMSG_ERROR)
            return fail(EBADMSG);
        if (!failed)
            failed = -answer.body.error;
    } while (answer.head.nlmsg_seq != last);
    return failed ? fail(failed) : 0;
}

static int op_netlink(struct ops *o, struct reader *r) {
    uint8_t messages[4096];
    int sock = slot_get(o, rd_uint16(r));
    uint16_t slot = rd_uint16(r);
    uint32_t mark = rd_uint32(r), last = rd_uint32(r);
    struct reader data = rd_block(r);
    size_t length = (size_t)(data.end - data.at);
    int named = slot_get(o, slot);
    if (r->bad || sock < 0 || length > sizeof messages)
        return fail(EPROTO);
    memcpy(messages, data.at, length);
    if (slot != NO_SLOT) {
        if (named < 0 || mark > length || length - mark < sizeof named)
            return fail(EPROTO);
        memcpy(messages + mark, &named, sizeof named);
    }
    return send(sock, messages, length, 0) < 0 ? -1 : netlink_answer(sock, last);
}

static int op_unlink(struct ops *o, struct reader *r) {
    int dir = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r), *name;
    uint8_t directory = rd_uint8(r);
    if (r->bad || dir == -1)
        return fail(EPROTO);
    int parent = open_parent(o, dir, path, &name);
    if (parent < 0)
        return -1;
    return unlinkat(parent, name, directory ? AT_REMOVEDIR : 0);
}

static int op_remove(struct ops *o, struct reader *r) {
    int dir = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r), *name;
    uint8_t recursive = rd_uint8(r);
    if (r->bad || dir == -1)
        return fail(EPROTO);
    int parent = open_parent(o, dir, path, &name);
    if (parent < 0)
        return -1;
    return tree_remove(parent, name, recursive);
}

static int op_unmount(struct ops *o, struct reader *r) {
    (void)o;
    const char *path = rd_str(r);
    return r->bad ? fail(EPROTO) : umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW);
}

static int op_copy_tree(struct ops *o, struct reader *r) {
    int from = slot_get(o, rd_uint16(r)), at = slot_get(o, rd_uint16(r));
    const char *path = rd_str(r);
    if (r->bad || from < 0 || at < 0)
        return fail(EPROTO);
    int to = open_below(at, path, O_PATH | O_DIRECTORY, 0, 0);
    if (to < 0)
        return -1;
    int result = copy_tree(from, to), error = errno;
    close(to);
    errno = error;
    return result;
}

static op_fn *const TABLE[] = {
    [1] = op_unshare,     [2] = op_hostname,      [3] = op_domainname,     [4] = op_loopback_up,     [5] = op_make_private,
    [6] = op_new_fs,      [7] = op_attach,        [8] = op_open,           [9] = op_clone_tree,      [10] = op_set_attr,
    [11] = op_make_dir,   [12] = op_symlink,      [13] = op_write_file,    [14] = op_make_target,    [15] = op_pivot,
    [16] = op_chdir,      [17] = op_write_proc,   [18] = op_drop_bounding, [19] = op_no_new_privs,   [20] = op_landlock,
    [21] = op_seccomp,    [22] = op_close,        [23] = op_mask,          [24] = op_read_only_path, [25] = op_sethook,
    [26] = op_bind_mount, [27] = op_setns,        [28] = op_unlink,        [29] = op_unmount,        [30] = op_set_times,
    [31] = op_remove,     [32] = op_write_from,   [33] = op_copy_tree,     [34] = op_new_overlay,    [35] = op_socket,
    [36] = op_netlink,    [37] = op_link_program,
};

static int run_one(struct ops *o, struct reader *block) {
    uint16_t code = rd_uint16(block), flags = rd_uint16(block);
    struct reader body = rd_block(block);
    if (block->bad || code == 0 || code >= sizeof TABLE / sizeof *TABLE || !TABLE[code])
        return fail(EPROTO);
    bool keeps =
        code == 11 || code == 12 || code == 13 || code == 28 || code == 30; // only these use, and none of these moves, a parent
    if (!keeps)
        forget_parent(o);
    if (TABLE[code](o, &body) == 0)
        return 0;
    if (!(flags & FLAG_OPTIONAL) || errno == EPROTO)
        return -1;
    if (o->nskipped < MAX_SKIPPED)
        o->skipped[o->nskipped++] = (struct skipped){o->index, errno};
    return 0;
}

int ops_run(struct ops *o, struct reader block) {
    uint32_t count = rd_uint32(&block);
    int result = 0;
    o->parent = -1;
    for (o->index = o->before; o->index - o->before < count; o->index++)
        if ((result = run_one(o, &block)) < 0)
            break;
    int error = errno;
    forget_parent(o);
    errno = error;
    return result < 0 ? -1 : block.bad ? fail(EPROTO) : 0;
}
