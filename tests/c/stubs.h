// stubs.h: ops.c without a kernel. Include this instead of compiling ops.c; no system call leaves it.
//
// Descriptors are fake numbers from FAKE on. The layer knows which are open, so that a test sees leaks, double closes
// and uses after close. `stub_seed` decides which calls fail; with 0 none does. With `stub_log` each call is printed.
#ifndef STUBS_H
#define STUBS_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

static long stub_syscall(long nr, ...);
#define syscall stub_syscall // before sys.h, whose functions make system calls too
#include "copy.h"
#include "ops.h"
#include "sys.h"

#include <dirent.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

enum { FAKE = 1000, FAKES = 4096 };
static bool stub_open[FAKES];
static int stub_nopen;
static uint32_t stub_seed;
static FILE *stub_log;

#define CHECK(what)                                                                                                                        \
    do {                                                                                                                                   \
        if (!(what)) {                                                                                                                     \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what);                                                             \
            abort();                                                                                                                       \
        }                                                                                                                                  \
    } while (0)

static uint32_t stub_random(void) {
    stub_seed ^= stub_seed << 13;
    stub_seed ^= stub_seed >> 17;
    stub_seed ^= stub_seed << 5;
    return stub_seed;
}

static bool stub_fails(void) {
    static const int errors[] = {EPERM, ENOENT, EEXIST, ELOOP, ENOTDIR, EINVAL, EACCES, ENOSYS};
    uint32_t r = stub_seed ? stub_random() : 1;
    if (r % 16)
        return false;
    errno = errors[r / 16 % (sizeof errors / sizeof *errors)];
    return true;
}

static int stub_fd(void) {
    for (int i = 0; i < FAKES; i++)
        if (!stub_open[i]) {
            stub_open[i] = true;
            stub_nopen++;
            return FAKE + i;
        }
    abort();
}

static void stub_use(int fd) { CHECK(fd == AT_FDCWD || (fd >= FAKE && fd < FAKE + FAKES && stub_open[fd - FAKE])); }

// Reads every string whole, so that ASan sees one that is not in the message.
static void stub_say(const char *name, const char *a, const char *b) {
    size_t length = (a ? strlen(a) : 0) + (b ? strlen(b) : 0);
    if (stub_log)
        fprintf(stub_log, "  %s(%s, %s) %zu\n", name, a ? a : "-", b ? b : "-", length);
}

static int stub_call(const char *name, int fd, const char *a, const char *b) {
    stub_use(fd);
    stub_say(name, a, b);
    return stub_fails() ? -1 : 0;
}

static int stub_opens(const char *name, int fd, const char *a) { return stub_call(name, fd, a, NULL) < 0 ? -1 : stub_fd(); }

static int stub_close(int fd) {
    CHECK(fd != AT_FDCWD);
    stub_use(fd);
    stub_open[fd - FAKE] = false;
    stub_nopen--;
    return 0;
}

static int stub_fstat(int fd, struct stat *st) {
    memset(st, 0, sizeof *st);
    st->st_mode = stub_seed && stub_random() % 2 ? S_IFDIR : S_IFREG;
    return stub_call("fstat", fd, NULL, NULL);
}

static int stub_fstatat(int fd, const char *path, struct stat *st, int flags) {
    static const mode_t kinds[] = {S_IFREG, S_IFDIR, S_IFLNK};
    (void)flags;
    memset(st, 0, sizeof *st);
    st->st_mode = kinds[stub_seed ? stub_random() % 3 : 0];
    return stub_call("fstatat", fd, path, NULL);
}

// Relative, absolute, to itself; or no link.
static ssize_t stub_readlinkat(int fd, const char *path, char *buffer, size_t size) {
    static const char *const targets[] = {"", "d", "/d/e", "..", "a-name-that-is-somewhat-longer/../x"};
    const char *target = targets[stub_seed ? stub_random() % (sizeof targets / sizeof *targets) : 0];
    if (stub_call("readlinkat", fd, path, NULL) < 0)
        return -1;
    memcpy(buffer, target, strlen(target) < size ? strlen(target) : size);
    return *target ? (ssize_t)strlen(target) : (errno = ENOENT, -1);
}

static int stub_statx(int fd, const char *path, int flags, unsigned mask, struct statx *st) {
    (void)flags, (void)mask;
    memset(st, 0, sizeof *st);
    st->stx_attributes_mask = st->stx_attributes = stub_seed ? stub_random() : 0;
    st->stx_mnt_id = st->stx_ino = stub_seed ? stub_random() % 2 : 1;
    return stub_call("statx", fd, path, NULL);
}

// A directory with names of every kind; without failures, with none.
static long stub_getdents(int fd, uint8_t *buffer, size_t size) {
    struct head {
        uint64_t ino;
        int64_t next;
        uint16_t length;
        uint8_t type;
    } __attribute__((packed));
    static const char *const names[] = {".", "..", "d", "file", "a-name-that-is-somewhat-longer", ".sandbox-removed-0"};
    static const uint8_t types[] = {DT_DIR, DT_REG, DT_UNKNOWN, DT_LNK};
    size_t used = 0;
    if (stub_call("getdents64", fd, NULL, NULL) < 0)
        return -1;
    for (uint32_t count = stub_seed ? stub_random() % 6 : 0; count && size - used >= 64; count--) {
        const char *name = names[stub_random() % 6];
        struct head e = {1, 0, (uint16_t)((19 + strlen(name) + 8) / 8 * 8), types[stub_random() % 4]};
        memset(buffer + used, 0, e.length);
        memcpy(buffer + used, &e, 19);
        memcpy(buffer + used + 19, name, strlen(name) + 1);
        used += e.length;
    }
    return (long)used;
}

static int stub_unlinkat(int fd, const char *path) {
    static const int errors[] = {EISDIR, ENOTEMPTY, ENOTDIR, EBUSY, ENOENT};
    if (stub_call("unlinkat", fd, path, NULL) < 0)
        return -1;
    if (!stub_seed || stub_random() % 2)
        return 0;
    return errno = errors[stub_random() % 5], -1;
}

static ssize_t stub_write(int fd, const void *data, size_t size) {
    volatile uint8_t sum = 0; // reads it all, for ASan
    for (size_t i = 0; i < size; i += size - i > 4096 ? 512 : 1)
        sum ^= ((const uint8_t *)data)[i];
    (void)sum;
    if (stub_log)
        fprintf(stub_log, "  write %.*s\n", size < 256 ? (int)size : 256, (const char *)data);
    if (stub_call("write", fd, NULL, NULL) < 0)
        return -1;
    return (ssize_t)(stub_seed && size > 1 && stub_random() % 4 == 0 ? size / 2 : size);
}

static ssize_t stub_pread(int fd, void *buffer, size_t size) {
    if (stub_call("pread", fd, NULL, NULL) < 0)
        return -1;
    size = stub_seed ? stub_random() % (size + 1) : size;
    memset(buffer, 'x', size);
    return (ssize_t)size;
}

// The kernel's answers to netlink, often acknowledgements of one of the first messages; at last there is none.
static ssize_t stub_recv(int fd, void *buffer, size_t size) {
    static unsigned asked;
    if (stub_call("recv", fd, NULL, NULL) < 0)
        return -1;
    if (++asked % 4 == 0) {
        errno = EAGAIN;
        return -1;
    }
    struct nlmsghdr head = {.nlmsg_type = stub_random() % 4 ? NLMSG_ERROR : NLMSG_DONE, .nlmsg_seq = stub_random() % 4};
    memset(buffer, 0, size);
    memcpy(buffer, &head, size < sizeof head ? size : sizeof head);
    return stub_random() % 8 ? (ssize_t)size : 0;
}

static long stub_syscall(long nr, ...) {
    va_list args;
    long a[6];
    va_start(args, nr);
    int count = nr == __NR_unshare ? 1 : nr == __NR_fsopen || nr == __NR_pivot_root || nr == __NR_landlock_restrict_self ? 2
              : nr == __NR_fsconfig || nr == __NR_move_mount || nr == __NR_mount_setattr || nr == __NR_renameat2 ? 5
              : nr == __NR_openat2 || nr == __NR_landlock_add_rule ? 4 : 3;
    for (int i = 0; i < count; i++)
        a[i] = va_arg(args, long);
    va_end(args);
    switch (nr) {
    case __NR_fsopen: return stub_opens("fsopen", AT_FDCWD, (char *)a[0]);
    case __NR_fsmount: return stub_opens("fsmount", (int)a[0], NULL);
    case __NR_fsconfig: return stub_call("fsconfig", (int)a[0], (char *)a[2], (int)a[1] == FSC_SET_STRING ? (char *)a[3] : NULL);
    case __NR_openat2: return stub_opens("openat2", (int)a[0], (char *)a[1]);
    case __NR_getdents64: return stub_getdents((int)a[0], (uint8_t *)a[1], (size_t)a[2]);
    case __NR_renameat2: stub_use((int)a[2]); return stub_call("renameat2", (int)a[0], (char *)a[1], (char *)a[3]);
    case __NR_open_tree: return stub_opens("open_tree", (int)a[0], (char *)a[1]);
    case __NR_move_mount: stub_use((int)a[2]); return stub_call("move_mount", (int)a[0], NULL, NULL);
    case __NR_mount_setattr: return stub_call("mount_setattr", (int)a[0], NULL, NULL);
    case __NR_landlock_create_ruleset: return stub_opens("landlock_create_ruleset", AT_FDCWD, NULL);
    case __NR_landlock_add_rule: return stub_call("landlock_add_rule", (int)a[0], NULL, NULL);
    case __NR_landlock_restrict_self: return stub_call("landlock_restrict_self", (int)a[0], NULL, NULL);
    case __NR_pivot_root: return stub_call("pivot_root", AT_FDCWD, (char *)a[0], (char *)a[1]);
    case __NR_unshare: return stub_call("unshare", AT_FDCWD, NULL, NULL);
    case __NR_seccomp:
        if (stub_call("seccomp", AT_FDCWD, NULL, NULL) < 0)
            return -1;
        return (unsigned)a[1] & SECCOMP_FILTER_FLAG_NEW_LISTENER ? stub_fd() : 0;
    case __NR_bpf: return stub_opens("bpf", AT_FDCWD, NULL);
    case __NR_getrandom:
        memset((void *)a[0], 0x5a, (size_t)a[1]);
        return stub_call("getrandom", AT_FDCWD, NULL, NULL) < 0 ? -1 : a[1];
    default: fprintf(stderr, "system call %ld has no stub\n", nr); abort();
    }
}

static int stub_capabilities(int option, unsigned long cap) {
    (void)cap;
    if (option == PR_CAPBSET_DROP && cap > 40)
        return errno = EINVAL, -1;
    return stub_call("prctl", AT_FDCWD, NULL, NULL);
}

// classic.h's, and copy.h's, which have files and tests of their own.
int classic_set_attr(int fd, uint64_t set, uint64_t propagation, bool recursive) {
    (void)set, (void)propagation, (void)recursive;
    return stub_call("classic_set_attr", fd, NULL, NULL);
}

int copy_tree(int from, int to) {
    stub_use(to);
    return stub_call("copy_tree", from, NULL, NULL);
}

#define close stub_close
#define fstat stub_fstat
#define fstatat stub_fstatat
#define readlinkat stub_readlinkat
#define statx(...) stub_statx(__VA_ARGS__)
#define write stub_write
#define pwrite(fd, data, size, offset) ((void)(offset), stub_write(fd, data, size))
#define pread(fd, buffer, size, offset) ((void)(offset), stub_pread(fd, buffer, size))
#define lseek(fd, offset, whence) stub_call("lseek", fd, NULL, NULL)
#define utimensat(fd, path, times, flags) ((void)(times), stub_call("utimensat", fd, path, NULL))
#define openat(fd, path, ...) ((void)(int[]){__VA_ARGS__}, stub_opens("openat", fd, path))
#define mkdirat(fd, path, mode) ((void)(mode), stub_call("mkdirat", fd, path, NULL))
#define unlinkat(fd, path, flags) ((void)(flags), stub_unlinkat(fd, path))
#define fchmodat(fd, path, mode, flags) ((void)(mode), stub_call("fchmodat", fd, path, NULL))
#define fchownat(fd, path, uid, gid, flags) ((void)(uid), (void)(gid), stub_call("fchownat", fd, path, NULL))
#define symlinkat(target, fd, path) stub_call("symlinkat", fd, path, target)
#define ftruncate(fd, size) stub_call("ftruncate", fd, NULL, NULL)
#define fchown(fd, uid, gid) ((void)(uid), (void)(gid), stub_call("fchown", fd, NULL, NULL))
#define fchmod(fd, mode) ((void)(mode), stub_call("fchmod", fd, NULL, NULL))
#define fchdir(fd) stub_call("fchdir", fd, NULL, NULL)
#define chdir(path) stub_call("chdir", AT_FDCWD, path, NULL)
#define mount(from, path, type, flags, data) ((void)(flags), stub_call("mount", AT_FDCWD, path, data))
#define umount2(path, flags) stub_call("umount2", AT_FDCWD, path, NULL)
#define sethostname(name, size) ((void)(size), stub_call("sethostname", AT_FDCWD, name, NULL))
#define setdomainname(name, size) ((void)(size), stub_call("setdomainname", AT_FDCWD, name, NULL))
#define setns(fd, kind) ((void)(kind), stub_call("setns", fd, NULL, NULL))
#define fcntl(fd, ...) stub_opens("fcntl", fd, NULL)
#define socket(domain, type, protocol) ((void)(domain), (void)(type), (void)(protocol), stub_opens("socket", AT_FDCWD, NULL))
#define send(fd, data, length, flags) ((void)(data), (void)(length), (void)(flags), stub_call("send", fd, NULL, NULL))
#define recv(fd, data, length, flags) stub_recv(fd, data, length)
#define ioctl(fd, code, argument) ((void)(argument), stub_call("ioctl", fd, NULL, NULL))
#define prctl(option, cap, ...) stub_capabilities(option, (unsigned long)(cap))

#include "below.c"
#include "ops.c"
#include "tree.c"

// A table of slots of which the first `filled` are open.
static void stub_start(struct ops *o, int *slots, int filled) {
    memset(stub_open, 0, sizeof stub_open);
    stub_nopen = 0;
    *o = (struct ops){.slots = slots, .userns = -1, .notify = -1, .parent = -1, .roles = {[0 ... ROLES - 1] = -1}};
    for (int i = 0; i < SLOTS; i++)
        slots[i] = i < filled ? stub_fd() : -1;
    o->userns = stub_fd();
    o->roles[ROLE_ROOT] = stub_fd();
}

// Closes what the operations should have left open, and nothing else may be open then.
static void stub_finish(struct ops *o) {
    for (int i = 0; i < SLOTS; i++)
        if (o->slots[i] >= 0)
            stub_close(o->slots[i]);
    for (int i = 0; i < ROLES; i++)
        if (o->roles[i] >= 0)
            stub_close(o->roles[i]);
    if (o->notify >= 0)
        stub_close(o->notify);
    stub_close(o->userns);
    CHECK(stub_nopen == 0);
}

#endif
