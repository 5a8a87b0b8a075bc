// sys.h: system calls and constants that an older libc may lack, under their kernel names.
#ifndef SANDBOX_SYS_H
#define SANDBOX_SYS_H

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

// Numbers above 424 are the same on every architecture (asm-generic/unistd.h).
#ifndef __NR_open_tree
#define __NR_open_tree  428
#define __NR_move_mount 429
#define __NR_fsopen     430
#define __NR_fsconfig   431
#define __NR_fsmount    432
#endif
#ifndef __NR_pidfd_open
#define __NR_pidfd_open 434
#endif
#ifndef __NR_clone3
#define __NR_clone3 435
#endif
#ifndef __NR_close_range
#define __NR_close_range 436
#endif
#ifndef __NR_openat2
#define __NR_openat2 437
#endif
#ifndef __NR_mount_setattr
#define __NR_mount_setattr 442
#endif
#ifndef __NR_landlock_create_ruleset
#define __NR_landlock_create_ruleset 444
#define __NR_landlock_add_rule       445
#define __NR_landlock_restrict_self  446
#endif

#define X_CLONE_NEWCGROUP   0x02000000ULL
#define X_CLONE_NEWTIME     0x00000080ULL
#define X_CLONE_NEWUSER     0x10000000ULL
#define X_CLONE_NEWPID      0x20000000ULL
#define X_CLONE_PIDFD       0x00001000ULL
#define X_CLONE_INTO_CGROUP 0x200000000ULL

#define X_OPEN_TREE_CLONE         1U
#define X_AT_RECURSIVE            0x8000
#define X_MOVE_MOUNT_F_EMPTY_PATH 0x04
#define X_MOVE_MOUNT_T_EMPTY_PATH 0x40
#define X_FSOPEN_CLOEXEC          1
#define X_FSMOUNT_CLOEXEC         1
enum { FSC_SET_FLAG = 0, FSC_SET_STRING = 1, FSC_CMD_CREATE = 6 };
#define X_MOUNT_ATTR_RDONLY     0x1ULL
#define X_MOUNT_ATTR_NOATIME    0x10
#define X_MOUNT_ATTR_IDMAP      0x00100000ULL
#define X_RESOLVE_NO_MAGICLINKS 0x02
#define X_RESOLVE_NO_SYMLINKS   0x04
#define X_RESOLVE_IN_ROOT       0x10
#define X_CLOSE_RANGE_CLOEXEC   4

struct x_open_how {
    uint64_t flags, mode, resolve;
};
struct x_mount_attr {
    uint64_t attr_set, attr_clr, propagation, userns_fd;
};
struct x_clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

// The filter of a traceless container lets init pass by a number in the sixth argument, which the kernel ignores and no program
// can know: see op_seccomp. 0: there is none.
extern uint64_t own_token;
uint64_t own_token __attribute__((weak));

// A system call of init's own, of at most five arguments, that would be reported if a program made it.
static inline long own_call(long nr, long a, long b, long c, long d, long e) {
    return syscall(nr, a, b, c, d, e, own_token);
}

static inline int openat2(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    struct x_open_how how = {flags | O_CLOEXEC, mode, resolve};
    return (int)syscall(__NR_openat2, dir, path, &how, sizeof how, 0L, own_token);
}
static inline int open_tree_(int dir, const char *path, unsigned flags) {
    return (int)syscall(__NR_open_tree, dir, path, flags | O_CLOEXEC);
}
static inline int move_mount_(int from, int to) {
    return (int)syscall(__NR_move_mount, from, "", to, "", X_MOVE_MOUNT_F_EMPTY_PATH | X_MOVE_MOUNT_T_EMPTY_PATH);
}
static inline int mount_setattr_(int fd, unsigned flags, struct x_mount_attr *attr) {
    return (int)syscall(__NR_mount_setattr, fd, "", AT_EMPTY_PATH | flags, attr, sizeof *attr);
}
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE 2U
#endif
static inline int close_range_(unsigned first, unsigned last, unsigned flags) {
    return (int)syscall(__NR_close_range, first, last, flags);
}
static inline int pidfd_open_(int pid) {
    return (int)syscall(__NR_pidfd_open, pid, 0);
}

#endif
