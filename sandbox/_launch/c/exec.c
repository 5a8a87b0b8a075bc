// exec.c: one program, from a request to its execve.
//
// Theory of operation: init must not copy its memory for each program, so the child is cloned with CLONE_VM and
// CLONE_VFORK: init sleeps until the child has called execve or has failed, and what the child writes into the
// request (step, error, mark_ino) is there for init to read. The child allocates nothing and returns never.
//
// CLONE_VFORK is more than a wait: out of memory, the kernel kills everybody who shares the victim's memory, and only a
// child that it knows to be in vfork is never chosen (oom_badness in mm/oom_kill.c: in_vfork). Without it a program that fills
// its control group by files on a tmpfs would have the next child, and init with it, killed. So execve fails with ENOMEM.
//
// The kernel gives a new process the idlest CPU, and for a child that lets its parent sleep this is the wrong one: it has to
// be woken up (in a virtual machine by two exits to the hypervisor), and so has init's, 0.2 ms later. So both keep to one CPU
// until execve, where the kernel chooses anew.
#define _GNU_SOURCE
#include "exec.h"
#include "sys.h"

#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>

#ifdef __has_feature // clang's way to tell; gcc has a macro
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif
#ifndef ASAN_UNPOISON_MEMORY_REGION
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)0)
#endif

enum { MAX_CPUS = 8192 }; // CONFIG_NR_CPUS is that at most

static char child_stack[32768] __attribute__((aligned(16)));

static unsigned long all_cpus[MAX_CPUS / (8 * sizeof(long))], this_cpu[MAX_CPUS / (8 * sizeof(long))];
static size_t cpus_size; // of both sets, in bytes; 0: not known
static bool is_kept;     // for the child to undo, and for init

static struct {
    uint32_t uid, gid, groups[MAX_GROUPS];
    int ngroups; // -1: not known, none of them
} own_ids = {.ngroups = -1};

void exec_note_self(void) {
    long size = syscall(__NR_sched_getaffinity, 0, sizeof all_cpus, all_cpus);
    cpus_size = size > 0 ? (size_t)size : 0;
    uint32_t uid[3], gid[3];
    if (syscall(__NR_getresuid, &uid[0], &uid[1], &uid[2]) < 0 || syscall(__NR_getresgid, &gid[0], &gid[1], &gid[2]) < 0)
        return;
    if (uid[0] != uid[1] || uid[0] != uid[2] || gid[0] != gid[1] || gid[0] != gid[2])
        return;
    own_ids.uid = uid[0];
    own_ids.gid = gid[0];
    own_ids.ngroups = (int)syscall(__NR_getgroups, MAX_GROUPS, own_ids.groups);
}

static bool take_fd(struct reader *r, const int *fds, int nfds, int *out) {
    uint16_t ref = rd_uint16(r);
    *out = -1;
    if (ref == NO_SLOT)
        return !r->bad;
    if (r->bad || ref >= nfds || fds[ref] < 0)
        return false;
    *out = fds[ref];
    return true;
}

static bool take_source(struct reader *r, const int *fds, int nfds, int *out) {
    struct reader ahead = *r;
    if (rd_uint16(&ahead) != OWN_NULL)
        return take_fd(r, fds, nfds, out) && *out >= 0;
    *r = ahead;
    *out = FROM_NULL;
    return true;
}

static bool parse_fds(struct exec_request *x, struct reader *r, const int *fds, int nfds) {
    if (!take_fd(r, fds, nfds, &x->cpu_fd))
        return false;
    x->cpu_format = rd_uint8(r);
    if (!take_fd(r, fds, nfds, &x->into_cgroup) || (x->njoins = rd_uint16(r)) > MAX_JOINS)
        return false;
    for (uint32_t i = 0; i < x->njoins; i++)
        if (!take_fd(r, fds, nfds, &x->joins[i]) || x->joins[i] < 0)
            return false;
    if ((x->nfds = rd_uint16(r)) > MAX_FD_MAP)
        return false;
    for (uint32_t i = 0; i < x->nfds; i++) {
        if (!take_source(r, fds, nfds, &x->fds[i].from))
            return false;
        if ((x->fds[i].to = rd_uint32(r)) > MAX_FD_TARGET)
            return false;
    }
    return !r->bad;
}

static bool parse_limits(struct exec_request *x, struct reader *r) {
    if ((x->nlimits = rd_uint16(r)) > MAX_RLIMITS)
        return false;
    for (uint32_t i = 0; i < x->nlimits; i++) {
        x->limits[i].resource = rd_uint32(r);
        x->limits[i].limit.rlim_cur = rd_uint64(r);
        x->limits[i].limit.rlim_max = rd_uint64(r);
    }
    return !r->bad;
}

// argv and envp: two lists of strings, each ended by NULL, in place.
static bool parse_strings(struct exec_request *x, struct reader *r) {
    x->argc = rd_uint32(r);
    x->envc = rd_uint32(r);
    size_t count = (size_t)x->argc + x->envc + 2;
    if (r->bad || x->argc == 0 || x->argc > WIRE_MAX / 5 || x->envc > WIRE_MAX / 5)
        return false;
    char **table = x->pointers;
    if (count > MAX_POINTERS) {
        x->mapped_size = count * sizeof *table;
        x->mapped = mmap(NULL, x->mapped_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (x->mapped == MAP_FAILED) {
            x->mapped = NULL;
            return false;
        }
        table = x->mapped;
    }
    x->argv = table;
    x->envp = table + x->argc + 1;
    for (uint32_t i = 0; i < x->argc; i++)
        x->argv[i] = (char *)rd_str(r);
    for (uint32_t i = 0; i < x->envc; i++)
        x->envp[i] = (char *)rd_str(r);
    x->argv[x->argc] = x->envp[x->envc] = NULL;
    return !r->bad;
}

bool exec_parse(struct exec_request *x, struct reader reader, const int *fds, int nfds) {
    struct reader *r = &reader;
    x->mapped = NULL;
    x->tty = x->proc = -1;
    x->in_root = false;
    x->mark = false;
    x->mark_ino = 0;
    x->step = x->error = 0;
    x->ready = 0;
    x->flags = rd_uint32(r);
    x->uid = rd_uint32(r);
    x->gid = rd_uint32(r);
    if ((x->ngroups = rd_uint32(r)) > MAX_GROUPS && x->ngroups != UINT32_MAX)
        return false;
    for (uint32_t i = 0; x->ngroups != UINT32_MAX && i < x->ngroups; i++)
        x->groups[i] = rd_uint32(r);
    x->cwd = rd_str(r);
    x->umask = rd_uint32(r);
    x->wall_ns = rd_uint64(r);
    x->cpu_ns = rd_uint64(r);
    x->cpus_milli = rd_uint32(r);
    if (!parse_fds(x, r, fds, nfds) || !parse_limits(x, r))
        return false;
    x->rows = rd_uint16(r);
    x->columns = rd_uint16(r);
    x->ncandidates = rd_uint32(r);
    if (r->bad || x->ncandidates == 0 || x->ncandidates > MAX_CANDIDATES)
        return false;
    for (uint32_t i = 0; i < x->ncandidates; i++)
        x->candidates[i] = rd_str(r);
    if (!parse_strings(x, r) || r->at != r->end) {
        exec_forget(x);
        return false;
    }
    return true;
}

void exec_forget(struct exec_request *x) {
    if (x->mapped)
        munmap(x->mapped, x->mapped_size);
    x->mapped = NULL;
}

static void failed(struct exec_request *x, int step) {
    x->step = step;
    x->error = errno;
}

// v1: "0" means the writer. A single-threaded writer of its own `tasks` takes no global lock (30 us, not 5 ms), and
// the rights are those of whoever opened the file.
static bool join_cgroups(struct exec_request *x) {
    for (uint32_t i = 0; i < x->njoins; i++)
        if (write(x->joins[i], "0", 1) != 1)
            return false;
    return true;
}

static bool set_mark(struct exec_request *x) {
    struct stat st;
    if (syscall(__NR_unshare, X_CLONE_NEWCGROUP) < 0)
        return false;
    int fd = openat(x->proc, "self/ns/cgroup", O_PATH | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return false;
    if (message_send(x->mark_sock, MSG_DONE, NULL, &fd, 1) < 0)
        return false;
    x->mark_ino = st.st_ino;
    return true;
}

static bool is_null(int fd) {
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3);
}

// A caller who has /dev/null open, for all: what one program sets on an open file (F_SETFL, F_SETOWN, flock) others that have
// it would see, and so would those of other containers. Init opens the container's own, once, and takes back what the last one
// set.
static int own = -1;

void exec_unlock_null(void) {
    if (own >= 0)
        own_call(__NR_flock, own, LOCK_UN, 0, 0, 0);
}

static bool use_own_null(struct exec_request *x) {
    int null = -1; // the caller's, or FROM_NULL
    for (uint32_t i = 0; i < x->nfds; i++) {
        if (x->fds[i].from != null && x->fds[i].from != FROM_NULL && !is_null(x->fds[i].from))
            continue;
        if (null == -1) {
            if (own < 0)
                own = (int)own_call(__NR_openat, AT_FDCWD, (long)"/dev/null", O_RDWR | O_CLOEXEC, 0, 0);
            if (own < 0 || own_call(__NR_fcntl, own, F_SETFL, 0, 0, 0) < 0 || own_call(__NR_fcntl, own, F_SETOWN, 0, 0, 0) < 0 ||
                own_call(__NR_flock, own, LOCK_UN, 0, 0, 0) < 0)
                return false;
        }
        null = x->fds[i].from;
        x->fds[i].from = own;
    }
    return true;
}

static void close_at_exec(int fd) {
    if (fd >= 0)
        own_call(__NR_fcntl, fd, F_SETFD, FD_CLOEXEC, 0, 0); // EBADF: there is none, or no more
}

// Before Linux 5.11, close_range(2) does not know CLOSE_RANGE_CLOEXEC: those that there are, as the container's procfs tells, or
// else, where there is none, all that there can be.
static bool close_all_at_exec(const struct exec_request *x) {
    if (close_range_(0, ~0U, X_CLOSE_RANGE_CLOEXEC) == 0)
        return true;
    if (errno != EINVAL)
        return false;
    if (x->proc < 0) {
        struct rlimit most;
        if (getrlimit(RLIMIT_NOFILE, &most) < 0)
            return false;
        for (rlim_t fd = 0; fd < most.rlim_cur && fd < MAX_FD_TARGET; fd++)
            close_at_exec((int)fd);
        return true;
    }
    int dir = openat(x->proc, "self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return false;
    char buffer[2048] __attribute__((aligned(8)));
    long n;
    while ((n = syscall(__NR_getdents64, dir, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < n;) {
            uint16_t length;
            memcpy(&length, buffer + at + 16, sizeof length);
            if (buffer[at + 19] != '.')
                close_at_exec(atoi(buffer + at + 19));
            at += length;
        }
    close(dir);
    return n == 0;
}

// Descriptors may trade places (3 -> 4 and 4 -> 3): first all sources go above the highest target, then each to its place.
static bool map_fds(struct exec_request *x) {
    uint32_t top = 2;
    for (uint32_t i = 0; i < x->nfds; i++)
        if (x->fds[i].to > top)
            top = x->fds[i].to;
    int base = (int)top + 1;
    for (uint32_t i = 0; i < x->nfds; i++)
        if (x->fds[i].from < base && (x->fds[i].from = fcntl(x->fds[i].from, F_DUPFD_CLOEXEC, base)) < 0)
            return false;
    if (x->tty >= 0 && (x->tty = fcntl(x->tty, F_DUPFD_CLOEXEC, base)) < 0)
        return false;
    // From here on only what is mapped stays open over execve, whatever init holds.
    if (!close_all_at_exec(x))
        return false;
    for (int i = 0; x->tty >= 0 && i < 3; i++)
        if (dup2(x->tty, i) < 0)
            return false;
    for (uint32_t i = 0; i < x->nfds; i++)
        if (dup2(x->fds[i].from, (int)x->fds[i].to) < 0)
            return false;
    return true;
}

static bool set_limits(struct exec_request *x) {
    for (uint32_t i = 0; i < x->nlimits; i++)
        if (setrlimit((int)x->limits[i].resource, &x->limits[i].limit) < 0)
            return false;
    return true;
}

static bool has_own_groups(const struct exec_request *x) {
    return x->ngroups == (uint32_t)own_ids.ngroups && memcmp(x->groups, own_ids.groups, x->ngroups * sizeof *x->groups) == 0;
}

// execve clears all capabilities of a user other than root, and gives root what the bounding set has; so the ids are all.
// Raw calls: the libc's wrappers would signal other threads, and this memory is init's too.
static bool set_ids(struct exec_request *x) {
    if (x->ngroups != UINT32_MAX && !has_own_groups(x) && syscall(__NR_setgroups, (size_t)x->ngroups, x->groups) < 0)
        return false;
    if (own_ids.ngroups >= 0 && x->uid == own_ids.uid && x->gid == own_ids.gid)
        return true;
    if (syscall(__NR_setresgid, x->gid, x->gid, x->gid) < 0 || syscall(__NR_setresuid, x->uid, x->uid, x->uid) < 0)
        return false;
    return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0; // a change of ids may have set it, and the memory is still init's
}

// Init's descriptors are still open here, and /proc/self/fd/N, or a link to it that a program planted, would lead through
// them to what no program may see (CVE-2024-21626): such links are not followed. As the program's user, and before its limit
// of descriptors is in force.
static bool enter_cwd(struct exec_request *x) {
    if (x->in_root && x->cwd[0] == '/' && !x->cwd[1])
        return true;
    int fd = openat2(AT_FDCWD, x->cwd, O_PATH | O_DIRECTORY, 0, X_RESOLVE_NO_MAGICLINKS);
    return fd >= 0 && fchdir(fd) == 0;
}

// Dispositions need nothing: the launcher set them all to the default when it started, and execve drops init's one handler.
static void unblock_signals(void) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void execve_first(struct exec_request *x) {
    int error = ENOENT;
    for (uint32_t i = 0; i < x->ncandidates; i++) {
        execve(x->candidates[i], x->argv, x->envp);
        if (errno == EACCES)
            error = EACCES; // remembered, as execvp(3) does; a later directory may still have it
        else if (errno != ENOENT && errno != ENOTDIR) {
            error = errno;
            break;
        }
    }
    errno = error;
}

void exec_become(struct exec_request *x) {
    if (!join_cgroups(x))
        return failed(x, STEP_CGROUP);
    if (x->mark && !set_mark(x))
        return failed(x, STEP_MARK);
    if (setsid() < 0 && errno != EPERM) // EPERM: leads its session already
        return failed(x, STEP_TTY);
    if (!map_fds(x))
        return failed(x, STEP_FDS);
    if (x->tty >= 0 && own_call(__NR_ioctl, 0, TIOCSCTTY, 0, 0, 0) < 0)
        return failed(x, STEP_TTY);
    if (!set_ids(x))
        return failed(x, STEP_IDS);
    if (!enter_cwd(x))
        return failed(x, STEP_CWD);
    if (!set_limits(x))
        return failed(x, STEP_RLIMIT);
    umask(x->umask);
    struct timespec ready;
    clock_gettime(CLOCK_MONOTONIC, &ready);
    x->ready = (uint64_t)ready.tv_sec * 1000000000ULL + (uint64_t)ready.tv_nsec;
    unblock_signals();
    execve_first(x);
    failed(x, STEP_EXECVE);
}

// Init sleeps until execve. But between its change of ids and execve a child can be stopped by other programs of its user, and
// execve itself by a lease on the file, or by a slow disk; then nobody would keep the deadlines of those others. So the child has
// 1 s where there are others, and else 4 s, for the caller gives init up after 5. The timer ends with execve (timer_create(2)),
// is charged to init's user and not to the program's, and SIGKILL reaches the stopped.
static time_t patience_s(bool alone) {
    return alone ? 4 : 1;
}

static bool limit_patience(bool alone) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
    struct itimerspec patience = {.it_value.tv_sec = patience_s(alone)};
    int timer; // the kernel's, not the libc's: it would allocate
    return syscall(__NR_timer_create, CLOCK_MONOTONIC, &event, &timer) == 0 &&
           syscall(__NR_timer_settime, timer, 0, &patience, NULL) == 0;
}

// Keeps this process, and the child that it clones now, to the CPU that it is on; false if it cannot.
static bool stay_here(void) {
    int cpu = sched_getcpu();
    if (cpu < 0 || (size_t)cpu >= cpus_size * 8)
        return false;
    unsigned long *word = &this_cpu[(size_t)cpu / (8 * sizeof *word)];
    *word = 1UL << ((size_t)cpu % (8 * sizeof *word));
    long done = syscall(__NR_sched_setaffinity, 0, cpus_size, this_cpu);
    *word = 0;
    return done == 0;
}

// Back to the CPUs that init was given, whatever it has been set to since; to all that there are if none of those is left
// (another cpuset, a CPU that went).
static bool go_anywhere(void) {
    if (syscall(__NR_sched_setaffinity, 0, cpus_size, all_cpus) == 0)
        return true;
    memset(all_cpus, 0xff, sizeof all_cpus);
    return syscall(__NR_sched_setaffinity, 0, sizeof all_cpus, all_cpus) == 0;
}

static int child_main(void *arg) {
    struct exec_request *x = arg;
    if ((is_kept && !go_anywhere()) || !limit_patience(x->alone)) {
        failed(arg, STEP_CLONE);
        _exit(127);
    }
    exec_become(arg);
    _exit(127);
}

// clone3(2) with a stack of the child's own: the libc of Debian 12 has no wrapper for it.
static long clone3_on_stack(struct x_clone_args *args, int (*fn)(void *), void *arg) {
    long result;
#if defined(__x86_64__)
    // In registers by name: left to itself the compiler may choose rbp, which is cleared before they are used.
    register int (*to)(void *) __asm__("r8") = fn;
    register void *with __asm__("r9") = arg;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %[arg], %%rdi\n\t"
                     "call *%[fn]\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "a"(__NR_clone3), "D"(args), "S"(sizeof *args), [fn] "r"(to), [arg] "r"(with)
                     : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long nr __asm__("x8") = __NR_clone3;
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = sizeof *args;
    register int (*to)(void *) __asm__("x9") = fn;
    register void *with __asm__("x10") = arg;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, #0\n\t"
                     "mov x0, %[arg]\n\t"
                     "blr %[fn]\n\t"
                     "brk #1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(nr), "r"(x1), [fn] "r"(to), [arg] "r"(with)
                     : "x30", "memory");
    result = x0;
#else
#error "no clone3 for this architecture"
#endif
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

static int spawn(struct exec_request *x) {
    // The last child left by execve, and with it frames that no return has unpoisoned.
    ASAN_UNPOISON_MEMORY_REGION(child_stack, sizeof child_stack);
    if (x->into_cgroup < 0)
        return clone(child_main, child_stack + sizeof child_stack, CLONE_VM | CLONE_VFORK | SIGCHLD, x);
    struct x_clone_args args = {
        .flags = CLONE_VM | CLONE_VFORK | X_CLONE_INTO_CGROUP,
        .exit_signal = SIGCHLD,
        .stack = (uint64_t)(uintptr_t)child_stack,
        .stack_size = sizeof child_stack,
        .cgroup = (uint64_t)x->into_cgroup,
    };
    return (int)clone3_on_stack(&args, child_main, x);
}

// Whether its patience ended the child, and reaps it then. Execve deletes the timer: who comes that far has not waited so long.
static bool was_killed_before_execve(const struct exec_request *x, int pid, const struct timespec *begin) {
    struct timespec end;
    siginfo_t info = {.si_pid = 0};
    clock_gettime(CLOCK_MONOTONIC, &end);
    int64_t waited = (end.tv_sec - begin->tv_sec) * INT64_C(1000000000) + end.tv_nsec - begin->tv_nsec;
    if (waited < patience_s(x->alone) * INT64_C(1000000000))
        return false;
    // Init wakes up when the child lets go of its memory, a moment before it can be waited for.
    struct timespec pause = {.tv_nsec = 1000000};
    for (int tries = 0; tries < 50 && waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && !info.si_pid; tries++)
        nanosleep(&pause, NULL);
    if (info.si_pid != pid)
        return false;
    if (info.si_code != CLD_KILLED || info.si_status != SIGKILL)
        return false;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return true;
}

int exec_spawn(struct exec_request *x) {
    if (!use_own_null(x)) {
        failed(x, STEP_FDS);
        return -1;
    }
    is_kept = x->flags & EXEC_SAME_CPU && stay_here();
    struct timespec begin;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    int pid = spawn(x);
    int error = errno;
    if (is_kept)
        go_anywhere(); // where that fails, nothing is lost but speed
    errno = error;
    if (pid < 0) {
        failed(x, x->into_cgroup < 0 ? STEP_CLONE : STEP_CGROUP);
        return -1;
    }
    if (x->step) {
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
        return -1;
    }
    if (was_killed_before_execve(x, pid, &begin)) {
        errno = ETIMEDOUT;
        failed(x, STEP_EXECVE);
        return -1;
    }
    return pid;
}
