// launcher.c: clones containers' inits for one embedding process, and cleans up behind them.
//
// Theory of operation
// -------------------
// The embedding process starts the launcher once, with one end of a SOCK_SEQPACKET socket as descriptor 3. The first
// process leaves at once, so that the launcher is nobody's child there (no zombie, no SIGCHLD later). It is
// single-threaded, and small, so that a clone of it is cheap however large the embedding process is.
//
// A request to create names a channel: a socket whose other end the caller keeps. All answers go there: from the
// launcher CLONED (with a pidfd), and at the very end GONE; in between init speaks. The launcher keeps a copy of its
// end for GONE, which it sends when the init is reaped and the container's control groups are removed.
//
// When the socket ends, or the embedding process does (its pidfd; a forked child may still hold the socket), every
// init is killed, what they left is removed, and the launcher ends.
#define _GNU_SOURCE
#include "held.h"
#include "init.h"
#include "sys.h"

#include <dirent.h>
#include <limits.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

enum { FD_SOCKET = 3 };

struct container {
    int pid; // 0: free; -1: dead, its control groups still to be removed
    int channel;
    int go; // to an init that is prepared and waits for COMPLETE; else -1
    struct held held;
    bool direct;
    int status;
    uint64_t user_us, system_us, max_rss; // few numbers: each clone copies the pages of the table
    char *cleanup;                        // paths, each with its NUL, and an empty one; or NULL
};

static struct container *containers;
static size_t ncontainers;
static char *own_cleanup, *own_trees; // of the embedding process as a whole
static int epoll, signals, parent = -1;
static bool pending; // some control group was busy

// What is kept for a container as long as it lives has a number from here on. An init begins with the launcher's own table of
// descriptors, and takes a copy of what is below: with a thousand containers, copying and closing all takes 0.2 ms.
static unsigned parking;
static bool may_look; // at the files in /proc of processes that are not dumpable

static int park(int fd) {
    int parked = fcntl(fd, F_DUPFD_CLOEXEC, parking);
    if (parked < 0)
        return fd;
    close(fd);
    return parked;
}

// ---- Control groups ----

// Removes a directory of a control group file system and those below it. Its files go with it.
static int remove_group(int at, const char *name, int depth) {
    if (unlinkat(at, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
        return 0;
    int fd = depth > 16 ? -1 : openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    struct dirent *entry;
    while ((entry = readdir(dir)))
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
            remove_group(dirfd(dir), entry->d_name, depth + 1);
    closedir(dir);
    return unlinkat(at, name, AT_REMOVEDIR) == 0 || errno == ENOENT ? 0 : -1;
}

static bool remove_all(const char *paths) {
    bool done = true;
    for (const char *path = paths; path && *path; path += strlen(path) + 1)
        done &= remove_group(AT_FDCWD, path, 0) == 0;
    return done;
}

// Lets a frozen group and those below it go on: what is frozen by v1's freezer does not die of SIGKILL.
static void thaw(int at, const char *name, int depth) {
    int fd = depth > 16 ? -1 : openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int state = fd < 0 ? -1 : openat(fd, "freezer.state", O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    if (state >= 0) {
        if (write(state, "THAWED", 6) < 0) // the root of the hierarchy, say: nothing is frozen there
            errno = 0;
        close(state);
    }
    DIR *dir = state < 0 ? NULL : fdopendir(fd); // every group of that hierarchy has the file; others have none below
    struct dirent *entry;
    while (dir && (entry = readdir(dir)))
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
            thaw(dirfd(dir), entry->d_name, depth + 1);
    if (dir)
        closedir(dir);
    else if (fd >= 0)
        close(fd);
}

static int write_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = write(fd, text, strlen(text));
    int error = errno;
    close(fd);
    errno = error;
    return n < 0 ? -1 : 0;
}

// One step with a control group.
struct step {
    uint8_t what;
    const char *path, *value;
};

static bool parse_step(struct step *s, struct reader *r) {
    s->what = rd_uint8(r);
    s->path = rd_str(r);
    s->value = rd_str(r);
    return !r->bad && s->what <= GROUP_OWN && s->path[0] == '/' && !strstr(s->path, "..");
}

// Descriptors for the caller.
struct opened {
    int fds[WIRE_FDS], count;
    int to;       // where GROUP_GIVE sends them; -1: nowhere
    bool lacking; // one that should be among them is not
};

static void close_opened(struct opened *o) {
    while (o->count > 0)
        close(o->fds[--o->count]);
    o->lacking = false;
}

static int open_for(struct opened *o, const char *path, int flags) {
    if (o->count == WIRE_FDS)
        return errno = EPROTO, -1;
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0)
        return -1;
    o->fds[o->count++] = fd;
    return 0;
}

// What nobody receives, or not all of it, the caller opens himself: the group is there.
static int give(struct opened *o, const char *path) {
    if (o->to < 0)
        return errno = EPROTO, -1;
    struct writer w = {.length = 0};
    const char *name = strrchr(path, '/') + 1;
    wr(&w, name, strlen(name));
    if (!o->lacking)
        message_send(o->to, MSG_OPENED, &w, o->fds, o->count);
    close_opened(o);
    return 0;
}

static int own(const char *path, const char *number) {
    char *end;
    errno = 0;
    unsigned long uid = strtoul(number, &end, 10);
    if (errno || *end || end == number || uid >= UINT32_MAX)
        return errno = EPROTO, -1;
    return chown(path, (uid_t)uid, (gid_t)-1);
}

static int take_step(struct reader *r, struct opened *o) {
    struct step s;
    if (!parse_step(&s, r))
        return errno = EPROTO, -1;
    switch (s.what) {
    case GROUP_WRITE:
        return write_text(s.path, s.value);
    case GROUP_REMOVE:
        return rmdir(s.path) == 0 || errno == ENOENT ? 0 : -1;
    case GROUP_READ:
        return open_for(o, s.path, O_RDONLY);
    case GROUP_JOIN:
        return open_for(o, s.path, O_WRONLY);
    case GROUP_GIVE:
        return give(o, s.path);
    case GROUP_OWN:
        return own(s.path, s.value);
    default:
        return mkdir(s.path, 0755) == 0 || errno == EEXIST ? 0 : -1;
    }
}

static int make_groups(struct reader r, struct opened *o) {
    while (r.at != r.end)
        if (take_step(&r, o) < 0)
            return -1;
    return 0;
}

// u32 count, then strings -> one block of C strings; only absolute paths, never "..".
static char *read_paths(struct reader *r) {
    uint32_t count = rd_uint32(r);
    size_t room = (size_t)(r->end - r->at) + 2, used = 0;
    char *block = malloc(room);
    for (uint32_t i = 0; block && i < count; i++) {
        const char *path = rd_str(r);
        if (r->bad || path[0] != '/' || strstr(path, "..")) {
            r->bad = true;
            break;
        }
        used += (size_t)(stpcpy(block + used, path) - (block + used)) + 1;
    }
    if (!block || r->bad) {
        free(block);
        return NULL;
    }
    block[used] = 0;
    return block;
}

// ---- Ends ----

static void announce(struct container *c) {
    struct writer w = {.length = 0};
    wr_u32(&w, (uint32_t)c->status);
    wr_u64(&w, c->user_us);
    wr_u64(&w, c->system_us);
    wr_u64(&w, c->max_rss);
    message_send(c->channel, MSG_GONE, &w, NULL, 0);
    close(c->channel);
    if (c->go >= 0)
        close(c->go);
    free(c->cleanup);
    c->pid = 0;
}

static void bury(struct container *c) {
    held_weigh(&c->held);
    if (!remove_all(c->cleanup)) {
        pending = true;
        return;
    }
    announce(c);
    held_release(&c->held);
}

static void retry_pending(void) {
    pending = false;
    for (size_t i = 0; i < ncontainers; i++)
        if (containers[i].pid == -1)
            bury(&containers[i]);
}

static uint64_t micros(const struct timeval *t) {
    return (uint64_t)t->tv_sec * 1000000 + (uint64_t)t->tv_usec;
}

static void reap(int options) {
    struct rusage usage;
    int status, pid;
    while ((pid = wait4(-1, &status, options | __WALL, &usage)) > 0) {
        for (size_t i = 0; i < ncontainers; i++) {
            struct container *c = &containers[i];
            if (c->pid != pid)
                continue;
            if (c->direct)
                kill(-pid, SIGKILL); // what it left in its session's first process group
            c->pid = -1;
            c->status = status;
            c->user_us = micros(&usage.ru_utime);
            c->system_us = micros(&usage.ru_stime);
            c->max_rss = (uint64_t)usage.ru_maxrss;
            bury(c);
        }
    }
}

static void on_cleanup(struct message *m) {
    free(own_cleanup);
    free(own_trees);
    own_cleanup = read_paths(&m->body);
    own_trees = own_cleanup ? read_paths(&m->body) : NULL;
}

// ---- Directories that programs wrote to ----
//
// As deep, as wide and as closed as a hostile program made them: nothing here recurses or follows a link.

static int open_directory(int at, const char *name) {
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0 || errno != EACCES)
        return fd;
    char path[64];
    int closed = openat(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (closed < 0)
        return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", closed);
    if (chmod(path, 0700) == 0)
        fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    close(closed);
    return fd;
}

static bool is_dots(const char *name) {
    return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

// Moves what is in directory `name` up beside it. Directories get names of their own; the next pass removes them.
static void lift(int at, const char *name, unsigned *serial) {
    char fresh[32];
    int fd = open_directory(at, name);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        if (is_dots(entry->d_name) || unlinkat(fd, entry->d_name, 0) == 0 || unlinkat(fd, entry->d_name, AT_REMOVEDIR) == 0)
            continue;
        int child = open_directory(fd, entry->d_name); // so that it may be written to: moving it changes its ".."
        if (child >= 0) {
            fchmod(child, 0700);
            close(child);
        }
        snprintf(fresh, sizeof fresh, ".lifted-%u", (*serial)++);
        renameat(fd, entry->d_name, at, fresh);
    }
    if (dir)
        closedir(dir);
    unlinkat(at, name, AT_REMOVEDIR);
}

static void remove_tree(const char *path) {
    unsigned serial = 0;
    for (int pass = 0; pass < 100000; pass++) {
        if (rmdir(path) == 0 || errno != ENOTEMPTY)
            return;
        int fd = open_directory(AT_FDCWD, path);
        DIR *dir = fd < 0 ? NULL : fdopendir(fd);
        struct dirent *entry;
        while (dir && (entry = readdir(dir)))
            if (!is_dots(entry->d_name) && unlinkat(fd, entry->d_name, 0) < 0 && unlinkat(fd, entry->d_name, AT_REMOVEDIR) < 0)
                lift(fd, entry->d_name, &serial);
        if (!dir)
            return;
        closedir(dir);
    }
}

// The embedding process may have said what to remove, made it, and died before we came to read that.
static void read_last_cleanup(void) {
    static struct message m;
    int got;
    while ((got = message_receive(FD_SOCKET, MSG_DONTWAIT, &m)) > 0 || (got < 0 && (errno == EPROTO || errno == EINTR))) {
        if (got > 0 && m.head.kind == MSG_CLEANUP)
            on_cleanup(&m);
        if (got > 0)
            message_drop(&m);
    }
}

static _Noreturn void leave(void) {
    read_last_cleanup();
    for (const char *path = own_cleanup; path && *path; path += strlen(path) + 1)
        thaw(AT_FDCWD, path, 0);
    for (size_t i = 0; i < ncontainers; i++)
        if (containers[i].pid > 0)
            kill(containers[i].pid, SIGKILL);
    held_end(); // it is a child as well, and ends now
    reap(0);
    for (const char *path = own_trees; path && *path; path += strlen(path) + 1)
        remove_tree(path);
    struct timespec pause = {0, 2000000};
    for (int tries = 0; tries < 500; tries++) {
        if (pending)
            retry_pending();
        if (!pending && remove_all(own_cleanup))
            break;
        nanosleep(&pause, NULL);
    }
    _exit(0);
}

// ---- Creation ----

struct create {
    uint64_t clone_flags;
    uint32_t flags, uid, gid;
    const char *uid_map, *gid_map;
    int into_cgroup;
    uint16_t njoins, cgroup_slot;
    struct {
        int fd;
        uint32_t kind;
    } joins[16];
    char *cleanup;
    struct reader groups, host_ops;
    struct init_start start;
    int slots[SLOTS];
    int go[2];
};

static void send_failed(int channel, uint8_t phase, uint32_t index, int error) {
    struct writer w = {.length = 0};
    wr_u8(&w, phase);
    wr_u32(&w, index);
    wr_u32(&w, 0);
    wr_u32(&w, (uint32_t)error);
    message_send(channel, MSG_FAILED, &w, NULL, 0);
}

static bool parse_create(struct create *k, struct message *m) {
    struct reader *r = &m->body;
    for (int i = 0; i < SLOTS; i++)
        k->slots[i] = -1;
    for (int i = 1; i < m->nfds; i++) // slot 0 is the channel
        k->slots[i] = m->fds[i];
    k->clone_flags = rd_uint64(r);
    k->flags = rd_uint32(r);
    k->uid = rd_uint32(r);
    k->gid = rd_uint32(r);
    k->uid_map = rd_str(r);
    k->gid_map = rd_str(r);
    k->cgroup_slot = rd_uint16(r);
    if (k->cgroup_slot != NO_SLOT && (k->cgroup_slot >= SLOTS || k->slots[k->cgroup_slot] < 0))
        return false;
    k->into_cgroup = k->cgroup_slot == NO_SLOT ? -1 : k->slots[k->cgroup_slot];
    k->njoins = rd_uint16(r);
    if (r->bad || k->njoins > sizeof k->joins / sizeof *k->joins)
        return false;
    for (int i = 0; i < k->njoins; i++) {
        uint16_t slot = rd_uint16(r);
        k->joins[i].fd = slot < SLOTS ? k->slots[slot] : -1;
        k->joins[i].kind = rd_uint32(r);
        if (k->joins[i].fd < 0)
            return false;
    }
    if (!(k->cleanup = read_paths(r)))
        return false;
    k->groups = rd_block(r);
    k->host_ops = rd_block(r);
    k->start.init_ops = rd_block(r);
    k->start.exec = rd_block(r);
    return !r->bad && r->at == r->end;
}

// What clone3 does, but for a group of cgroup v2 to be cloned into. For a seccomp filter around us that cannot look into the
// arguments of clone3, and therefore says that there is none (Docker's and podman's, where namespaces are allowed by their
// flags). A time namespace has no flag of clone; Python never asks for one here.
static long clone_init_by_clone(uint64_t flags, uint64_t exit_signal, int *pidfd) {
#if defined(__x86_64__)
    return syscall(__NR_clone, flags | exit_signal, 0L, pidfd, NULL, 0L); // the pidfd goes where a thread's id would
#else
    return syscall(__NR_clone, flags | exit_signal, 0L, pidfd, 0L, NULL); // CONFIG_CLONE_BACKWARDS
#endif
}

static long clone_init(struct create *k, uint64_t more, int *pidfd) {
    struct x_clone_args args = {
        .flags = k->clone_flags | more | CLONE_FILES | X_CLONE_PIDFD | (k->into_cgroup >= 0 ? X_CLONE_INTO_CGROUP : 0),
        .pidfd = (uint64_t)(uintptr_t)pidfd,
        .exit_signal = more & CLONE_PARENT ? 0 : SIGCHLD, // with CLONE_PARENT the kernel takes the parent's own
        .cgroup = k->into_cgroup >= 0 ? (uint64_t)k->into_cgroup : 0,
    };
    size_t size = k->into_cgroup >= 0 ? sizeof args : offsetof(struct x_clone_args, set_tid);
    long pid = syscall(__NR_clone3, &args, size);
    if (pid < 0 && errno == ENOSYS && k->into_cgroup < 0)
        return clone_init_by_clone(args.flags, args.exit_signal, pidfd);
    return pid;
}

static int compare(const void *a, const void *b) {
    return *(const int *)a - *(const int *)b;
}

// What is another container's must not stay open; an init that cannot see to that does not begin.
static void close_from_to(unsigned first, unsigned last, unsigned flags) {
    if (close_range_(first, last, flags) < 0)
        _exit(1);
}

// Goes on with a table of its own, in which there are only this container's descriptors; and lets the launcher know.
static void keep_own_fds(struct init_start *s) {
    int keep[SLOTS + 2], n = 0;
    keep[n++] = s->channel;
    keep[n++] = s->go;
    for (int i = 0; i < SLOTS; i++)
        if (s->ops.slots[i] >= 0)
            keep[n++] = s->ops.slots[i];
    qsort(keep, (size_t)n, sizeof *keep, compare);
    unsigned from = 3, last = (unsigned)keep[n - 1];
    close_from_to(last < parking ? parking : last + 1, ~0U, CLOSE_RANGE_UNSHARE); // from there on nothing is copied
    if (send(s->go, "", 1, MSG_NOSIGNAL) < 0)
        _exit(1); // it waits for this, or for our end
    for (int i = 0; i < n; i++) {
        if ((unsigned)keep[i] > from)
            close_from_to(from, (unsigned)keep[i] - 1, 0);
        if ((unsigned)keep[i] >= from)
            from = (unsigned)keep[i] + 1;
    }
    close_from_to(from, ~0U, 0);
}

static _Noreturn void child(struct create *k) {
    struct init_start *s = &k->start;
    s->flags = k->flags;
    s->uid = k->uid;
    s->gid = k->gid;
    s->ops.slots = k->slots;
    s->ops.userns = s->ops.notify = -1;
    s->ops.nskipped = s->ops.before = 0;
    for (int i = 0; i < ROLES; i++)
        s->ops.roles[i] = -1;
    keep_own_fds(s);
    init_main(s);
}

// What passes through the child that joins namespaces before it clones init as its own sibling.
static struct {
    struct create *create;
    long pid;
    int pidfd, step, error;
    int report; // a pipe to write all this to, for a joiner with memory of its own; or -1
} joiner;

static char joiner_stack[65536] __attribute__((aligned(16)));
static char inside_stack[16384] __attribute__((aligned(16)));

static _Noreturn void end_joiner(void) {
    _exit(joiner.report >= 0 && write(joiner.report, &joiner, sizeof joiner) != sizeof joiner);
}

static void clone_sibling(void) {
    int pidfd = -1;
    long pid = clone_init(joiner.create, CLONE_PARENT, &pidfd);
    if (pid == 0)
        child(joiner.create);
    joiner.pid = pid;
    joiner.error = errno;
    joiner.pidfd = pidfd;
}

static int clone_from_inside(void *unused) {
    (void)unused;
    clone_sibling();
    _exit(0);
}

static bool joins(const struct create *k, uint32_t kind) {
    for (int i = 0; i < k->njoins; i++)
        if (k->joins[i].kind == kind)
            return true;
    return false;
}

static int join_and_clone(void *unused) {
    (void)unused;
    struct create *k = joiner.create;
    for (int i = 0; i < k->njoins; i++)
        if (setns(k->joins[i].fd, (int)k->joins[i].kind) < 0) {
            joiner.step = i + 1;
            joiner.error = errno;
            end_joiner();
        }
    // A pid namespace takes children only, and lets nobody who stands outside of it make one in it (EINVAL of copy_pid_ns()): so
    // one more child, the launcher's like init, goes in and clones.
    int flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_PARENT;
    if (!joins(k, CLONE_NEWPID))
        clone_sibling();
    else if (clone(clone_from_inside, inside_stack + sizeof inside_stack, flags, NULL) < 0)
        joiner.error = errno;
    end_joiner();
}

// A process's number here, whatever it is called in the namespace that it was cloned in.
static long pid_of(int pidfd) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[n < 0 ? 0 : n] = 0;
    const char *line = strstr(text, "\nPid:");
    long pid = line ? strtol(line + 5, NULL, 10) : -1;
    return pid > 0 ? pid : -1;
}

// The joiner shares the launcher's memory and descriptors (so the pidfd is the launcher's), but not its namespaces. Who enters a
// time namespace must share memory with nobody, however (EUSERS of timens_install()).
static long clone_joined(struct create *k, int *pidfd, uint32_t *step) {
    joiner.create = k;
    joiner.pid = -1;
    joiner.pidfd = -1;
    joiner.step = 0;
    joiner.error = ECHILD; // if it ends before it can say what happened
    int pair[2] = {-1, -1}, shared = CLONE_VM;
    if (joins(k, X_CLONE_NEWTIME)) {
        shared = 0;
        if (pipe2(pair, O_CLOEXEC | O_NONBLOCK) < 0)
            return -1;
    }
    joiner.report = pair[1];
    int helper = clone(join_and_clone, joiner_stack + sizeof joiner_stack, shared | CLONE_VFORK | CLONE_FILES | SIGCHLD, NULL);
    while (helper > 0 && waitpid(helper, NULL, 0) < 0 && errno == EINTR)
        ;
    if (helper < 0)
        joiner.error = errno;
    if (pair[0] >= 0) {
        if (read(pair[0], &joiner, sizeof joiner) < 0 && errno != EAGAIN)
            joiner.error = errno;
        close(pair[0]);
        close(pair[1]);
    }
    if (joiner.pid > 0 && joins(k, CLONE_NEWPID) && (joiner.pid = pid_of(joiner.pidfd)) < 0) {
        syscall(__NR_pidfd_send_signal, joiner.pidfd, SIGKILL, NULL, 0);
        close(joiner.pidfd);
        joiner.error = ESRCH;
    }
    *pidfd = joiner.pidfd;
    *step = (uint32_t)joiner.step;
    errno = joiner.error;
    return joiner.pid;
}

// newuidmap and newgidmap of shadow: set-uid programs of the host that know /etc/subuid.
static int run_map_helper(const char *program, long pid, const char *map) {
    char number[24], copy[1024], *argv[64] = {(char *)program, number};
    int argc = 2;
    snprintf(number, sizeof number, "%ld", pid);
    if (snprintf(copy, sizeof copy, "%s", map) >= (int)sizeof copy)
        return errno = E2BIG, -1;
    for (char *word = strtok(copy, " \n"); word && argc < 63; word = strtok(NULL, " \n"))
        argv[argc++] = word;
    char *envp[] = {"PATH=/usr/bin:/bin", NULL};
    int helper = vfork();
    if (helper == 0) {
        execve(program, argv, envp);
        _exit(127);
    }
    int status = 0;
    if (helper < 0)
        return -1;
    while (waitpid(helper, &status, 0) < 0 && errno == EINTR)
        ;
    if (status == 0)
        return 0;
    errno = WIFEXITED(status) && WEXITSTATUS(status) == 127 ? ENOENT : EPERM;
    return -1;
}

static int write_maps(struct create *k, long pid) {
    char path[64];
    if (!*k->uid_map)
        return 0;
    if (k->flags & CREATE_DENY_SETGROUPS) {
        snprintf(path, sizeof path, "/proc/%ld/setgroups", pid);
        if (write_text(path, "deny") < 0)
            return -1;
    }
    if (k->flags & CREATE_MAP_HELPERS)
        return run_map_helper("/usr/bin/newuidmap", pid, k->uid_map) < 0 ? -1
                                                                         : run_map_helper("/usr/bin/newgidmap", pid, k->gid_map);
    snprintf(path, sizeof path, "/proc/%ld/uid_map", pid);
    if (write_text(path, k->uid_map) < 0)
        return -1;
    snprintf(path, sizeof path, "/proc/%ld/gid_map", pid);
    return write_text(path, k->gid_map);
}

// Carries the host's operations out and tells init to go on, handing over the slots that they filled, and `late`: operations
// that a prepared init still has to carry out. Uses the request's slots up.
static int hand_over(struct create *k, long pid, int go, const struct reader *late, uint32_t *index) {
    static int slots[SLOTS];
    struct ops o = {.slots = slots, .userns = -1, .notify = -1, .roles = {[0 ... ROLES - 1] = -1}};
    char path[64];
    memcpy(slots, k->slots, sizeof slots);
    int result = 0;
    if (k->host_ops.end - k->host_ops.at > 4) {
        snprintf(path, sizeof path, "/proc/%ld/ns/user", pid);
        o.userns = open(path, O_RDONLY | O_CLOEXEC);
        result = o.userns < 0 ? -1 : ops_run(&o, k->host_ops);
        *index = o.index;
    }
    struct writer w = {.length = 0};
    int fds[WIRE_FDS], count = 0;
    uint32_t total = 0;
    // A new init has copies of the request's descriptors since its clone; one that was prepared has none of them.
    for (int i = 0; i < SLOTS; i++)
        total += slots[i] >= 0 && (late || slots[i] != k->slots[i]);
    if (result == 0 && total > WIRE_FDS - 16) {
        errno = E2BIG;
        result = -1;
    }
    wr_u32(&w, total);
    for (int i = 0; i < SLOTS && result == 0; i++) {
        if (slots[i] < 0 || (!late && slots[i] == k->slots[i]))
            continue;
        uint16_t slot = (uint16_t)i;
        wr(&w, &slot, sizeof slot);
        fds[count++] = slots[i];
    }
    if (result == 0)
        result = message_send_with(go, MSG_DONE, &w, late, fds, count);
    int error = errno;
    for (int i = 0; i < SLOTS; i++) {
        if (slots[i] >= 0)
            close(slots[i]);
        k->slots[i] = -1;
    }
    if (o.userns >= 0)
        close(o.userns);
    errno = error;
    return result;
}

static struct container *new_entry(void) {
    for (size_t i = 0; i < ncontainers; i++)
        if (containers[i].pid == 0)
            return &containers[i];
    struct container *more = realloc(containers, (ncontainers + 1) * sizeof *more);
    if (!more)
        return NULL;
    containers = more;
    return &containers[ncontainers++];
}

static void give_up(struct create *k, uint8_t phase, uint32_t index, int error) {
    send_failed(k->start.channel, phase, index, error);
    close(k->start.channel);
    for (int i = 0; i < SLOTS; i++)
        if (k->slots[i] >= 0)
            close(k->slots[i]);
    remove_all(k->cleanup);
    free(k->cleanup);
}

// Until init has a table of its own, what it keeps must not change in the launcher's.
static void await_own_table(int go, int pidfd) {
    struct pollfd fds[] = {{.fd = go, .events = POLLIN}, {.fd = pidfd, .events = POLLIN}};
    char byte;
    while (poll(fds, 2, -1) < 0 && errno == EINTR)
        ;
    if (fds[0].revents)
        recv(go, &byte, 1, MSG_DONTWAIT);
}

static void start(struct create *k) {
    int pidfd = -1;
    uint32_t step = 0;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, k->go) < 0)
        return give_up(k, PHASE_CLONE, 0, errno);
    k->start.go = k->go[1];
    // Without privileges the files of a process that is not dumpable are out of reach, its id maps and its user namespace
    // among them: init is dumpable until it has them. It holds nothing then, and only this user could look.
    bool open_up = !may_look;
    if (open_up)
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    long pid = k->njoins ? clone_joined(k, &pidfd, &step) : clone_init(k, 0, &pidfd);
    if (pid == 0)
        child(k);
    int error = errno;
    if (open_up && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) { // open to all of this user's processes: it ends
        if (pid > 0)
            kill((int)pid, SIGKILL);
        leave();
    }
    struct container *c = pid < 0 ? NULL : new_entry();
    if (pid < 0 || !c) {
        if (pid > 0) {
            kill((int)pid, SIGKILL);
            waitpid((int)pid, NULL, __WALL);
            close(pidfd);
            error = ENOMEM;
        }
        close(k->go[0]);
        close(k->go[1]);
        return give_up(k, PHASE_CLONE, step, error);
    }
    *c = (struct container){.pid = (int)pid,
                            .channel = k->start.channel,
                            .go = -1,
                            .held = HELD_NOTHING,
                            .cleanup = k->cleanup,
                            .direct = k->flags & CREATE_DIRECT};
    // Before anybody is told: who knows of a container that was made ahead may use its groups.
    static struct opened opened;
    opened.fds[0] = pidfd;
    opened.count = 1;
    opened.to = -1;
    int groups_error = k->groups.at != k->groups.end && make_groups(k->groups, &opened) < 0 ? errno : 0;
    struct writer w = {.length = 0};
    wr_u32(&w, (uint32_t)pid);
    uint32_t index = 0;
    int clone_error = message_send(c->channel, MSG_CLONED, &w, opened.fds, opened.count) < 0 ? errno : 0;
    while (opened.count > 1) // the first is the pidfd
        close(opened.fds[--opened.count]);
    int maps_error = write_maps(k, pid) < 0 ? errno : 0;
    await_own_table(k->go[0], pidfd);
    close(pidfd);
    close(k->go[1]);
    c->channel = park(c->channel);
    int bad = clone_error ? PHASE_CLONE : maps_error ? PHASE_MAPS : groups_error ? PHASE_GROUPS : 0;
    errno = clone_error ? clone_error : maps_error ? maps_error : groups_error;
    if (!bad && hand_over(k, pid, k->go[0], NULL, &index) < 0)
        bad = PHASE_HOST;
    if (bad) {
        send_failed(c->channel, (uint8_t)bad, index, errno);
        kill((int)pid, SIGKILL);
        for (int i = 0; i < SLOTS; i++)
            if (k->slots[i] >= 0)
                close(k->slots[i]);
    }
    if (k->flags & CREATE_PREPARED && !bad)
        c->go = park(k->go[0]);
    else
        close(k->go[0]);
}

static void on_create(struct message *m) {
    static struct create k;
    if (m->nfds < 1)
        return; // nobody to tell
    k.start.channel = m->fds[0];
    k.cleanup = NULL;
    if (parse_create(&k, m))
        start(&k);
    else
        give_up(&k, PHASE_REQUEST, 0, EPROTO);
    m->nfds = 0;
}

static struct container *alive(uint32_t pid) {
    for (size_t i = 0; i < ncontainers; i++)
        if (containers[i].pid > 0 && (uint32_t)containers[i].pid == pid)
            return &containers[i];
    return NULL;
}

// The end of a container of which nothing is in anybody's way for a moment more: see held.c.
static void on_finish(struct message *m) {
    struct container *c = alive(rd_uint32(&m->body));
    const char *left = rd_str(&m->body);
    if (!c || m->body.bad)
        return;
    held_take(&c->held, c->pid, left);
    kill(c->pid, SIGKILL);
}

// What a prepared container still lacks. One that has died meanwhile is not found, and its channel has said so.
static void on_complete(struct message *m) {
    static struct create k;
    struct container *c = alive(rd_uint32(&m->body));
    k.host_ops = rd_block(&m->body);
    struct reader late = m->body; // the block of init's operations, with its length: init will read it
    struct reader block = rd_block(&m->body);
    if (!c || c->go < 0)
        return;
    uint32_t index = 0;
    uint8_t bad = m->body.bad || m->body.at != m->body.end || block.bad ? PHASE_REQUEST : 0;
    for (int i = 0; i < SLOTS; i++)
        k.slots[i] = -1;
    for (int i = 0; i < m->nfds; i++) // slot 0 is the channel
        k.slots[i + 1] = m->fds[i];
    errno = EPROTO;
    if (!bad) {
        m->nfds = 0;
        if (hand_over(&k, c->pid, c->go, &late, &index) < 0)
            bad = PHASE_HOST;
    }
    int error = errno;
    close(c->go);
    c->go = -1;
    if (bad) {
        send_failed(c->channel, bad, index, error);
        kill(c->pid, SIGKILL);
    }
}

// ---- What can wait ----
//
// A container that is made ahead is made when nothing else is asked: nobody waits for it, and it would take time from
// those who do. So are control groups made and removed for the programs of a container, step by step. Under a load that
// never pauses, it is carried out all the same after a while.

enum { QUIET_MS = 2, PATIENCE_MS = 50, MAX_WAITING = 64, MAX_TRIES = 50 };

struct waiting {
    struct waiting *next;
    uint64_t since;
    bool groups; // steps with the control groups of `pid`; else a CREATE
    uint32_t pid;
    int tries;
    uint64_t retry_at; // its next step is not taken before
    struct message m;
    uint8_t body[];
};

static struct waiting *first_waiting;
static struct opened for_first = {.to = -1}; // what its steps have opened
static int nwaiting;
static uint64_t last_busy;

static uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static bool can_wait(struct message *m) {
    struct reader r = m->body;
    if (m->head.kind == MSG_GROUPS)
        return !m->mapped && nwaiting < MAX_WAITING;
    rd_uint64(&r); // the clone's flags
    return m->head.kind == MSG_CREATE && rd_uint32(&r) & CREATE_CAN_WAIT && !r.bad && !m->mapped && nwaiting < MAX_WAITING;
}

static bool put_off(struct message *m) {
    size_t length = (size_t)(m->body.end - m->body.at);
    struct waiting *w = malloc(sizeof *w + length), **last = &first_waiting;
    if (!w)
        return false;
    w->next = NULL;
    w->since = now_ms();
    w->m = *m;
    memcpy(w->body, m->body.at, length);
    w->m.body = reader_of(w->body, length);
    w->groups = m->head.kind == MSG_GROUPS;
    w->pid = w->groups ? rd_uint32(&w->m.body) : 0;
    w->tries = 0;
    w->retry_at = 0;
    while (*last)
        last = &(*last)->next;
    *last = w;
    nwaiting++;
    m->nfds = 0; // w's now
    return true;
}

// How long to sleep at most, in milliseconds; -1: until something happens.
static int until_quiet(void) {
    if (!first_waiting && !held_waits())
        return -1;
    uint64_t now = now_ms(), quiet = last_busy + QUIET_MS, at = quiet;
    if (first_waiting && first_waiting->since + PATIENCE_MS < quiet)
        at = first_waiting->since + PATIENCE_MS;
    if (first_waiting && !held_waits() && at < first_waiting->retry_at)
        at = first_waiting->retry_at;
    return at > now ? (int)(at - now) : 0;
}

// One step; false when there is no other, or the container has gone: then its groups are somebody else's to remove.
static bool groups_go_on(struct waiting *w) {
    struct reader step = w->m.body;
    if (step.at == step.end || !alive(w->pid))
        return false;
    uint8_t what = *step.at;
    for_first.to = w->m.nfds ? w->m.fds[0] : -1;
    if (take_step(&step, &for_first) < 0) {
        if (step.bad || what == GROUP_MAKE || what == GROUP_WRITE || what == GROUP_OWN)
            return false;                                                       // the next steps need this one
        if (what == GROUP_REMOVE && errno == EBUSY && ++w->tries < MAX_TRIES) { // its last process is on its way out
            w->retry_at = now_ms() + QUIET_MS;
            return true;
        }
        for_first.lacking |= what != GROUP_REMOVE;
    }
    w->tries = 0;
    w->m.body = step;
    return step.at != step.end;
}

static void do_waiting(void) {
    struct waiting *w = first_waiting;
    if (!w || until_quiet() > 0 || (w->groups && groups_go_on(w)))
        return;
    first_waiting = w->next;
    nwaiting--;
    close_opened(&for_first);
    struct pollfd channel = {.fd = w->m.nfds ? w->m.fds[0] : -1};
    if (!w->groups && poll(&channel, 1, 0) == 0) // else whoever asked has let go of it
        on_create(&w->m);
    message_drop(&w->m);
    free(w);
}

// ---- The loop ----

static void on_socket(void) {
    static struct message m;
    int got = message_receive(FD_SOCKET, MSG_DONTWAIT, &m);
    if (got < 0 && (errno == EAGAIN || errno == EINTR || errno == EPROTO))
        return;
    if (got <= 0)
        leave();
    last_busy = now_ms();
    if (can_wait(&m) && put_off(&m))
        ;
    else if (m.head.kind == MSG_CREATE)
        on_create(&m);
    else if (m.head.kind == MSG_COMPLETE)
        on_complete(&m);
    else if (m.head.kind == MSG_FINISH)
        on_finish(&m);
    else if (m.head.kind == MSG_CLEANUP)
        on_cleanup(&m);
    message_drop(&m);
}

static bool watch(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

// Raw calls: the libc's wrapper refuses the signals that it keeps for its threads (32 and 33), and posix_spawn(3) of glibc has
// left just those ignored.
static void reset_signals(void) {
    static const unsigned long by_default[8]; // a struct sigaction of the kernel's, all zero, which is SIG_DFL
    sigset_t mask;
    for (int sig = 1; sig <= 64; sig++)
        syscall(__NR_rt_sigaction, sig, by_default, NULL, 8);
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    signals = sigprocmask(SIG_SETMASK, &mask, NULL) < 0 ? -1 : signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
}

static bool quiet_stdio(void) {
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    bool done = null >= 0;
    for (int fd = 0; done && fd < 3; fd++)
        done = dup2(null, fd) >= 0;
    if (null > 2)
        close(null);
    return done;
}

// The table of containers and their descriptors may grow to thousands.
static void raise_nofile(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
        parking = limit.rlim_cur < 2048 ? (unsigned)limit.rlim_cur / 2 : 1024;
    }
}

static bool has_capability(int number) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    return syscall(__NR_capget, &head, data) == 0 && data[CAP_TO_INDEX(number)].effective & CAP_TO_MASK(number);
}

int main(int argc, char **argv) {
    int caller = argc == 2 ? atoi(argv[1]) : 0;
    if (caller <= 0 || fcntl(FD_SOCKET, F_SETFD, FD_CLOEXEC) < 0)
        return 2; // started by hand
    prctl(PR_SET_NAME, "sandbox-launch", 0, 0, 0);
    // The streams before anything is opened: a caller that has closed 0, 1 or 2 left the numbers free.
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 || close_range_(4, ~0U, 0) < 0 || !quiet_stdio())
        return 3;
    if (getppid() == caller && (parent = pidfd_open_(caller)) < 0)
        return 3;
    pid_t self = fork();
    if (self != 0)
        return self < 0 ? 3 : 0;
    umask(0);
    uint32_t own = (uint32_t)getpid();
    if (setsid() < 0 || chdir("/") < 0 || send(FD_SOCKET, &own, sizeof own, MSG_NOSIGNAL) < 0)
        return 3;
    may_look = geteuid() == 0 && has_capability(CAP_SYS_PTRACE); // an outer container leaves its root without
    raise_nofile();
    reset_signals();
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0 || signals < 0 || !watch(FD_SOCKET) || !watch(signals) || (parent >= 0 && !watch(parent)))
        return 3;
    for (;;) {
        struct epoll_event events[4];
        int n = epoll_wait(epoll, events, 4, pending ? 2 : until_quiet());
        if (pending)
            retry_pending();
        if (n == 0) {
            do_waiting();
            held_let_go();
        }
        bool ended = false; // to look for the dead, all children are looked at
        for (int i = 0; i < n; i++) {
            struct signalfd_siginfo info;
            if (events[i].data.fd == parent)
                leave();
            if (events[i].data.fd == FD_SOCKET)
                on_socket();
            else
                while (read(signals, &info, sizeof info) > 0) {
                    last_busy = now_ms();
                    ended = true;
                }
        }
        if (ended)
            reap(WNOHANG);
        if (first_waiting && now_ms() >= first_waiting->since + PATIENCE_MS)
            do_waiting();
    }
}
