// init.c: PID 1 of a container.
//
// Theory of operation
// -------------------
// Init is a clone of the launcher that goes on in C. It waits for the launcher's "go", carries out the plan's
// operations, and then serves channels: SOCK_SEQPACKET sockets, whose other ends the caller holds. A channel runs one
// program at a time; several programs at once use several channels. When the first channel ends, the caller has gone:
// init exits, and the kernel kills all that is left in its PID namespace.
//
// "Nothing a program started outlives it." A program that ends alone is followed by kill(-1), which is atomic against
// fork. While others run, processes are told apart by their cgroup namespace: each program started beside another gets
// one of its own (its mark), which it can neither change nor leave. So at most one program is unmarked, and to it
// belongs whatever bears no other's mark.
//
// Time: wall and CPU deadlines are computed, not polled. The next look at a CPU limit is when it could be reached at
// the earliest, with all CPUs busy.
#define _GNU_SOURCE
#include "init.h"
#include "exec.h"
#include "judge.h"
#include "sys.h"

#include <dirent.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>

enum { DOUBT_MOST = 1000 };    // looks for what may have been left by a program, or by another
enum { MAX_GENERATIONS = 64 }; // of parents that are asked whose a process is
enum { BLIND_MOST = 1000 };    // looks for what a program left, without seeing anything: 0.2 s
enum { MAX_CHANNELS = 512, EVENTS = 16, KIND_NOTIFY = MAX_CHANNELS, KIND_CHILD };
static const uint64_t SECOND = 1000000000ULL;
static const uint64_t MIN_STEP = 500000ULL;     // between two looks at a CPU limit
static const uint64_t ENDING_STEP = 5000000ULL; // and at what is over a limit, but is being ended by something else

struct channel {
    int sock; // -1: free
    int pid;  // the program's first process, 0 when none runs
    int cpu_fd;
    uint8_t cpu_format, cause;
    bool marked;
    bool closing;  // the caller has hung up; the slot is free when the program has ended
    bool alone;    // no other program ran beside it: what nobody else waited for was its own
    bool executed; // it has been seen after its execve
    bool never;    // it has ended before that
    int mark_fd;   // keeps the namespace, and with it the inode number, from being used again before we have done
    uint64_t mark;
    uint64_t started, wall_at, cpu_limit, look_at; // nanoseconds of CLOCK_MONOTONIC; 0: none
    uint64_t born, see_at;                         // of its process; when to see whether it has executed
    uint64_t setup;                                // how long it took from the request until `started`, in nanoseconds
    uint64_t cpu_before;                           // what cpu_fd, or orphans, had counted at the start
    uint32_t cpus_milli;
    int32_t syscall_nr;
};

// What processes used, as wait4 tells it; in microseconds, KiB and counts.
struct tally {
    uint64_t user, system, max_rss, minor_faults, major_faults, voluntary, involuntary, blocks_in, blocks_out;
};

static struct channel channels[MAX_CHANNELS];
static int nchannels; // one past the last used
static int nrunning;
static int epoll, ends; // `ends` is a signalfd: some child has ended
static struct ops *context;
static struct exec_request request;
static struct tally orphans; // reaped processes that were no program's first, since one was started while none ran
static int peaks = -1;       // init's own /proc/self/clear_refs
static bool oneshot;
static bool has_traces; // of a traceless container: something may be left of a program, or of the caller

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static struct tally tally_of(const struct rusage *u) {
    return (struct tally){
        .user = (uint64_t)u->ru_utime.tv_sec * 1000000 + (uint64_t)u->ru_utime.tv_usec,
        .system = (uint64_t)u->ru_stime.tv_sec * 1000000 + (uint64_t)u->ru_stime.tv_usec,
        .max_rss = (uint64_t)u->ru_maxrss,
        .minor_faults = (uint64_t)u->ru_minflt,
        .major_faults = (uint64_t)u->ru_majflt,
        .voluntary = (uint64_t)u->ru_nvcsw,
        .involuntary = (uint64_t)u->ru_nivcsw,
        .blocks_in = (uint64_t)u->ru_inblock,
        .blocks_out = (uint64_t)u->ru_oublock,
    };
}

static void add_tally(struct tally *to, struct tally more) {
    to->user += more.user;
    to->system += more.system;
    if (more.max_rss > to->max_rss)
        to->max_rss = more.max_rss;
    to->minor_faults += more.minor_faults;
    to->major_faults += more.major_faults;
    to->voluntary += more.voluntary;
    to->involuntary += more.involuntary;
    to->blocks_in += more.blocks_in;
    to->blocks_out += more.blocks_out;
}

static uint64_t cpu_of(const struct tally *t) {
    return (t->user + t->system) * 1000;
}

static _Noreturn void fail_setup(int sock, uint8_t phase, uint32_t index, uint32_t step, int error) {
    struct writer w = {.length = 0};
    wr_u8(&w, phase);
    wr_u32(&w, index);
    wr_u32(&w, step);
    wr_u32(&w, (uint32_t)error);
    message_send(sock, MSG_FAILED, &w, NULL, 0);
    _exit(1);
}

// An answer that cannot be sent would be waited for in vain: the channel ends instead, which tells the caller as much.
static void answer(int sock, uint16_t kind, const struct writer *w, const int *fds, int nfds) {
    if (message_send(sock, kind, w, fds, nfds) < 0)
        own_call(__NR_shutdown, sock, SHUT_RDWR, 0, 0, 0);
}

// ---- Whose process is it? ----

// The beginning of a stat file of proc(5); its length, or -1.
static ssize_t read_stat(const char *path, char *text, size_t room) {
    int fd = openat(context->roles[ROLE_PROC], path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = read(fd, text, room - 1);
    int error = errno;
    close(fd);
    errno = error;
    text[n > 0 ? n : 0] = 0;
    return n;
}

// Its number'th field, from 3 on, with a space before it; NULL: there is none.
static const char *field_of(const char *text, int number) {
    const char *at = strrchr(text, ')');
    for (int field = 2; at && field < number; field++)
        at = strchr(at + 1, ' ');
    return at;
}

static uint64_t mark_of_thread(int pid, int tid) {
    char path[64];
    struct stat st;
    snprintf(path, sizeof path, "%d/task/%d/ns/cgroup", pid, tid);
    // Linux 5.10 does not refuse who may not see it: it shows the directory that the link is in.
    return fstatat(context->roles[ROLE_PROC], path, &st, 0) < 0 || !S_ISREG(st.st_mode) ? 0 : st.st_ino;
}

// A first thread that has ended has no namespaces, but others of its process may live on.
static uint64_t mark_of(int pid) {
    uint64_t mark = mark_of_thread(pid, pid);
    if (mark)
        return mark;
    char path[32], buffer[2048] __attribute__((aligned(8)));
    snprintf(path, sizeof path, "%d/task", pid);
    int fd = openat(context->roles[ROLE_PROC], path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    long n;
    while (fd >= 0 && !mark && (n = syscall(__NR_getdents64, fd, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < n && !mark;) {
            uint16_t length;
            memcpy(&length, buffer + at + 16, sizeof length);
            int tid = atoi(buffer + at + 19);
            at += length;
            if (tid > 0 && tid != pid)
                mark = mark_of_thread(pid, tid);
        }
    if (fd >= 0)
        close(fd);
    return mark;
}

static struct channel *owner_of_mark(uint64_t mark) {
    struct channel *unmarked = NULL;
    for (int i = 0; i < nchannels; i++) {
        struct channel *c = &channels[i];
        if (c->sock < 0 || !c->pid)
            continue;
        if (c->marked && c->mark == mark)
            return c;
        if (!c->marked)
            unmarked = c;
    }
    return unmarked;
}

// The program whose first process it is.
static struct channel *program_of(int pid) {
    for (int i = 0; i < nchannels; i++)
        if (channels[i].sock >= 0 && channels[i].pid == pid)
            return &channels[i];
    return NULL;
}

// The program that a process is sure to belong to, whether or not it lives: its first, or any where only one program runs.
static struct channel *sure_owner_of(int pid) {
    struct channel *first = program_of(pid);
    for (int i = 0; !first && nrunning == 1 && i < nchannels; i++)
        if (channels[i].sock >= 0 && channels[i].pid)
            first = &channels[i];
    return first;
}

static struct channel somebody; // in place of a program that cannot be told

// Whether a process is over, every thread of it, and waits to be reaped; by a tracer's leave it may be so for ever. Its first
// thread may have ended long before the others.
static bool is_over(int pid, const char *state, const char *threads) {
    if (!strchr("ZX", state[1]))
        return false;
    if (atoi(threads) <= 1)
        return true;
    char path[64], text[1024], buffer[2048] __attribute__((aligned(8)));
    snprintf(path, sizeof path, "%d/task", pid);
    int fd = openat(context->roles[ROLE_PROC], path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool lives = false;
    long n;
    while (fd >= 0 && !lives && (n = syscall(__NR_getdents64, fd, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < n && !lives;) {
            uint16_t length;
            memcpy(&length, buffer + at + 16, sizeof length);
            int tid = atoi(buffer + at + 19);
            at += length;
            snprintf(path, sizeof path, "%d/task/%d/stat", pid, tid);
            const char *its = tid > 0 && read_stat(path, text, sizeof text) > 0 ? field_of(text, 3) : NULL;
            lives = its && !strchr("ZX", its[1]);
        }
    if (fd >= 0)
        close(fd);
    return !lives;
}

// The program that a process belongs to; NULL: it has ended, or is none's. Of one that runs a file which nobody here may read,
// and whose owner has no id here, the kernel shows no namespaces (PTRACE_MODE_READ); nor of a first one in the moment of its
// execve. Its parents tell, unless they have ended and left it to init: then it may be anybody's. Who has come into the container
// from outside (setns) has the parent 0 here, which nothing has that a program started.
static struct channel *owner_of(int pid) {
    for (int generation = 0; pid > 1 && generation < MAX_GENERATIONS; generation++) {
        char path[32], text[1024];
        uint64_t mark = mark_of(pid);
        if (mark)
            return owner_of_mark(mark);
        struct channel *first = program_of(pid);
        if (first)
            return first;
        snprintf(path, sizeof path, "%d/stat", pid);
        const char *state = read_stat(path, text, sizeof text) > 0 ? field_of(text, 3) : NULL;
        const char *parent = state ? field_of(text, 4) : NULL, *threads = parent ? field_of(text, 20) : NULL;
        if (!threads || is_over(pid, state, threads))
            return generation ? &somebody : NULL;
        pid = atoi(parent);
    }
    return pid == 0 ? NULL : &somebody;
}

// Calls `visit` for each process of `c` but init, and with `doubtful` for those that may be; returns how many there were, or -1
// when not all could be seen.
static int each_process(struct channel *c, void (*visit)(struct channel *, int), bool doubtful) {
    int fd = openat(context->roles[ROLE_PROC], ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    char buffer[4096] __attribute__((aligned(8)));
    int seen = 0;
    long n;
    while ((n = syscall(__NR_getdents64, fd, buffer, sizeof buffer)) > 0) {
        for (long at = 0; at < n;) {
            struct {
                uint64_t ino, off;
                uint16_t length;
                uint8_t type;
            } entry;
            memcpy(&entry, buffer + at, sizeof entry);
            int pid = atoi(buffer + at + 19); // offsetof(struct linux_dirent64, d_name)
            at += entry.length;
            if (pid <= 1)
                continue;
            struct channel *owner = owner_of(pid);
            if (owner && (owner == c || (owner == &somebody && (doubtful || nrunning == 1)))) {
                visit(c, pid);
                seen++;
            }
        }
    }
    close(fd);
    return n < 0 ? -1 : seen;
}

static void reap_orphans(void);

static void kill_visited(struct channel *c, int pid) {
    (void)c;
    // No more children for it: a fork bomb must not outrun the walk.
    struct rlimit none = {0, 0};
    own_call(__NR_prlimit64, pid, RLIMIT_NPROC, (long)&none, 0, 0);
    kill(pid, SIGKILL);
}

// Kills what `c`'s program left behind, `c->pid` itself being reaped already.
static void kill_rest(struct channel *c) {
    if (nrunning == 1) { // only c: everything but init is its
        int status;
        struct rusage usage;
        int pid = wait4(-1, &status, WNOHANG | __WALL, &usage);
        if (pid < 0 && errno == ECHILD)
            return; // all orphans are init's children, so nothing is alive
        kill(-1, SIGKILL);
        do {
            if (pid > 0) // its CPU time is the program's, too
                add_tally(&orphans, tally_of(&usage));
        } while ((pid = wait4(-1, &status, __WALL, &usage)) > 0 || errno == EINTR);
        return;
    }
    struct timespec pause = {0, 200000};
    int blind = 0, seen, looks = 0;
    // For what may be another's, and has been killed, nobody waits for ever.
    while ((seen = each_process(c, kill_visited, looks++ < DOUBT_MOST)) != 0) {
        if (seen < 0 && ++blind == BLIND_MOST) // all processes' descriptors are in use, say
            _exit(1);                          // nothing outlives its program; here only by the end of the container
        nanosleep(&pause, NULL);               // the killed need the CPU to go
        reap_orphans();
    }
}

// ---- CPU time ----

static uint64_t parse_after(const char *text, const char *key) {
    const char *at = strstr(text, key);
    return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static uint64_t scanned_cpu;

static void add_cpu(struct channel *c, int pid) {
    (void)c;
    char path[32], text[1024];
    snprintf(path, sizeof path, "%d/stat", pid);
    int fd = openat(context->roles[ROLE_PROC], path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return;
    text[n] = 0;
    // proc(5): after the name in parentheses come state and ten numbers, then utime, stime, cutime, cstime in ticks.
    char *at = strrchr(text, ')');
    for (int skip = 0; at && skip < 12; skip++)
        at = strchr(at + 1, ' ');
    uint64_t ticks = 0;
    for (int i = 0; at && i < 4; i++)
        ticks += strtoull(at, &at, 10);
    scanned_cpu += ticks * (SECOND / (uint64_t)sysconf(_SC_CLK_TCK));
}

static uint64_t cpu_used(struct channel *c) {
    char text[512];
    if (c->cpu_fd < 0) {
        scanned_cpu = cpu_of(&orphans);
        each_process(c, add_cpu, false);
        return scanned_cpu - c->cpu_before;
    }
    ssize_t n = pread(c->cpu_fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = 0;
    uint64_t total = c->cpu_format == CPU_STAT ? parse_after(text, "usage_usec ") * 1000 : strtoull(text, NULL, 10);
    return total - c->cpu_before;
}

static void plan_look(struct channel *c, uint64_t at, uint64_t used) {
    uint64_t next = c->wall_at;
    if (c->cpu_limit) {
        uint64_t left = used < c->cpu_limit ? c->cpu_limit - used : 0;
        uint64_t wait = left * 1000 / (c->cpus_milli ? c->cpus_milli : 1000);
        uint64_t look = at + (wait < MIN_STEP ? MIN_STEP : wait);
        if (!next || look < next)
            next = look;
    }
    c->look_at = next;
}

// Reaping the first process kills the rest. Where nobody else runs, the rest need not have the time until then: where CPUs are
// scarce, that may be long.
static void kill_all_of(struct channel *c) {
    kill(nrunning == 1 ? -1 : c->pid, SIGKILL);
}

static void end_by(struct channel *c, uint8_t cause) {
    if (!c->cause)
        c->cause = cause;
    c->look_at = 0;
    kill_all_of(c);
}

// Whether a thread goes its way out already: it exits (PF_EXITING), or somebody's SIGKILL waits for it. False if that cannot be
// seen.
static bool is_thread_ending(int pid, int tid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "%d/task/%d/stat", pid, tid);
    ssize_t n = read_stat(path, text, sizeof text);
    if (n <= 0)
        return n == 0 || errno == ENOENT || errno == ESRCH;
    // The ninth number is flags, the 31st the signals that wait, with that of SIGKILL as the ninth bit.
    const char *flags = field_of(text, 9), *waiting = field_of(text, 31);
    return (flags && strtoull(flags, NULL, 10) & 4) || (waiting && strtoull(waiting, NULL, 10) & (1U << (SIGKILL - 1)));
}

// Whether a program's first process is being ended by something else, every thread of it: for want of memory, say, which takes
// its time.
static bool is_ending(int pid) {
    char path[32], buffer[2048] __attribute__((aligned(8)));
    snprintf(path, sizeof path, "%d/task", pid);
    int fd = openat(context->roles[ROLE_PROC], path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool all = fd >= 0;
    long n = 0;
    while (all && (n = syscall(__NR_getdents64, fd, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < n && all;) {
            uint16_t length;
            memcpy(&length, buffer + at + 16, sizeof length);
            int tid = atoi(buffer + at + 19); // offsetof(struct linux_dirent64, d_name)
            at += length;
            all = tid <= 0 || is_thread_ending(pid, tid);
        }
    if (fd >= 0)
        close(fd);
    return all && n == 0;
}

// A deadline has passed. What something else has ended before we looked is not ended by the deadline. But what it started shall
// not have the time that its end takes.
static void end_late(struct channel *c, uint64_t at, uint8_t cause) {
    if (!is_ending(c->pid)) {
        end_by(c, cause);
        return;
    }
    if (nrunning == 1)
        kill_all_of(c);
    else
        each_process(c, kill_visited, false);
    c->look_at = at + ENDING_STEP;
}

static void look_at_deadlines(void) {
    uint64_t at = now();
    for (int i = 0; i < nchannels; i++) {
        struct channel *c = &channels[i];
        if (c->sock < 0 || !c->pid || !c->look_at || c->look_at > at)
            continue;
        uint64_t used = c->cpu_limit ? cpu_used(c) : 0;
        if (c->wall_at && at >= c->wall_at)
            end_late(c, at, CAUSE_WALL);
        else if (c->cpu_limit && used >= c->cpu_limit)
            end_late(c, at, CAUSE_CPU);
        else
            plan_look(c, at, used);
    }
}

// ---- Programs that never began ----
//
// Init goes on when execve(2) has let go of the memory that they share. A moment later it deletes the child's timer (exec.c); but
// where CPUs are scarce that moment may be long, and then the timer ends a program that has not begun, which is no end of a
// program's. PF_FORKNOEXEC tells, of a process that waits to be reaped too: execve takes it away after the timer. Threads have it
// as well until they call execve: so it counts only while nobody has seen the process without, and it is looked at early.

static const uint64_t FIRST_SIGHT = 100000000ULL;

static bool has_executed(int pid) {
    char path[32], text[1024];
    snprintf(path, sizeof path, "%d/stat", pid);
    const char *flags = read_stat(path, text, sizeof text) > 0 ? field_of(text, 9) : NULL;
    return !flags || !(strtoull(flags, NULL, 10) & 0x40);
}

static void see_who_executed(void) {
    uint64_t at = now();
    for (int i = 0; i < nchannels; i++) {
        struct channel *c = &channels[i];
        if (c->sock < 0 || !c->pid || c->executed || c->see_at > at)
            continue;
        c->executed = has_executed(c->pid);
        c->see_at = at + (at - c->born);
    }
}

// Whether there is a program that the timer may have ended.
static bool may_one_never_begin(void) {
    for (int i = 0; i < nchannels; i++)
        if (channels[i].sock >= 0 && channels[i].pid && !channels[i].executed && now() - channels[i].born >= SECOND)
            return true;
    return false;
}

// ---- Ends ----

static void send_end(struct channel *c, uint8_t cause, int status, int detail, const struct tally *t, uint64_t cpu) {
    struct writer w = {.length = 0};
    wr_u8(&w, cause);
    wr_u32(&w, (uint32_t)status);
    wr_u32(&w, (uint32_t)detail);
    wr_u64(&w, c->started ? now() - c->started : 0);
    wr_u64(&w, cpu);
    wr_u64(&w, t->user);
    wr_u64(&w, t->system);
    wr_u64(&w, t->max_rss);
    wr_u64(&w, t->minor_faults);
    wr_u64(&w, t->major_faults);
    wr_u64(&w, t->voluntary);
    wr_u64(&w, t->involuntary);
    wr_u64(&w, t->blocks_in);
    wr_u64(&w, t->blocks_out);
    wr_u64(&w, c->setup);
    answer(c->sock, MSG_END, &w, NULL, 0);
}

static void close_channel(struct channel *c) {
    close(c->sock);
    c->sock = -1;
}

static void finish(struct channel *c, int status, const struct rusage *usage) {
    uint64_t wall_end = now();
    kill_rest(c);
    if (context->policy)
        exec_unlock_null();
    struct tally used = tally_of(usage);
    if (c->alone)
        add_tally(&used, orphans);
    uint64_t cpu = c->cpu_fd < 0 ? cpu_of(&used) : cpu_used(c);
    int detail = c->syscall_nr;
    // A limit that was passed between two looks was passed all the same.
    if (!c->cause && c->cpu_limit && cpu >= c->cpu_limit) {
        c->cause = CAUSE_CPU;
        detail = DETAIL_AT_END;
    }
    c->started += now() - wall_end; // the wall time of the program, without the tidying up
    nrunning--;
    c->pid = 0;
    if (c->cpu_fd >= 0)
        close(c->cpu_fd);
    c->cpu_fd = -1;
    if (c->mark_fd >= 0)
        close(c->mark_fd);
    c->mark_fd = -1;
    if (c->never)
        send_end(c, CAUSE_NOT_STARTED, STEP_EXECVE, ETIMEDOUT, &used, cpu);
    else
        send_end(c, c->cause, status, detail, &used, cpu);
    if (c->closing)
        close_channel(c);
    if (oneshot)
        _exit(0);
}

// As wait4 of anybody. Who may never have begun is looked at before, for then there is nothing left of it.
static int wait_for_one(int *status, int options, struct rusage *usage) {
    siginfo_t info = {.si_pid = 0};
    if (!may_one_never_begin())
        return wait4(-1, status, options, usage);
    if (waitid(P_ALL, 0, &info, WEXITED | WNOWAIT | options) < 0 || !info.si_pid)
        return -1;
    struct channel *c = program_of(info.si_pid);
    if (c && !c->executed && !c->cause && info.si_code == CLD_KILLED && info.si_status == SIGKILL)
        c->never = !has_executed(c->pid);
    return wait4(info.si_pid, status, options, usage);
}

static void reap(int options) {
    struct rusage usage;
    int status, pid;
    while ((pid = wait_for_one(&status, options, &usage)) > 0) {
        struct channel *c = program_of(pid);
        if (c)
            finish(c, status, &usage);
        else
            add_tally(&orphans, tally_of(&usage));
        if (c && !nrunning)
            return; // with the last program went all
    }
}

// Inside kill_rest other programs' first processes must not be reaped here: finish() is not reentrant.
static void reap_orphans(void) {
    siginfo_t info = {.si_pid = 0};
    struct rusage usage;
    int status;
    while (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid > 0) {
        for (int i = 0; i < nchannels; i++)
            if (channels[i].sock >= 0 && channels[i].pid == info.si_pid)
                return; // the main loop will come to it
        if (wait4(info.si_pid, &status, 0, &usage) > 0)
            add_tally(&orphans, tally_of(&usage));
        info.si_pid = 0;
    }
}

// ---- Requests ----

static int open_terminal(struct exec_request *x, int *master) {
    int pts = context->roles[ROLE_PTS], unlock = 0;
    if (pts < 0)
        return errno = ENODEV, -1;
    *master = (int)own_call(__NR_openat, pts, (long)"ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC, 0, 0);
    if (*master < 0)
        return -1;
    struct winsize size = {.ws_row = x->rows, .ws_col = x->columns};
    if (own_call(__NR_ioctl, *master, TIOCSPTLCK, (long)&unlock, 0, 0) == 0 &&
        (x->tty = (int)own_call(__NR_ioctl, *master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC, 0, 0)) >= 0 &&
        (!(x->rows | x->columns) || own_call(__NR_ioctl, *master, TIOCSWINSZ, (long)&size, 0, 0) == 0) &&
        own_call(__NR_fchown, x->tty, x->uid, -1, 0, 0) == 0)
        return 0;
    int error = errno;
    if (x->tty >= 0)
        close(x->tty);
    close(*master);
    x->tty = *master = -1;
    errno = error;
    return -1;
}

static void refuse(struct channel *c, int step, int error) {
    struct tally none = {0};
    c->started = c->setup = 0;
    send_end(c, CAUSE_NOT_STARTED, step, error, &none, 0);
    if (oneshot)
        _exit(0);
}

static int mark_pair[2] = {-1, -1};

static int receive_mark(void) {
    static uint8_t space[64];
    static struct message m = {.space = space, .room = sizeof space};
    if (message_receive(mark_pair[0], MSG_DONTWAIT, &m) <= 0)
        return -1;
    int fd = m.nfds == 1 ? m.fds[0] : -1;
    if (fd >= 0)
        m.nfds = 0;
    message_drop(&m);
    return fd;
}

static void run(struct channel *c, struct reader body, const int *fds, int nfds) {
    int master = -1;
    if (c->pid)
        return refuse(c, STEP_BUSY, EBUSY);
    if (!exec_parse(&request, body, fds, nfds))
        return refuse(c, STEP_REQUEST, EPROTO);
    if (request.flags & EXEC_TTY && open_terminal(&request, &master) < 0) {
        exec_forget(&request);
        return refuse(c, STEP_TTY, errno);
    }
    request.proc = context->roles[ROLE_PROC];
    request.in_root = context->in_root;
    bool beside = false; // does an unmarked program run?
    for (int i = 0; i < nchannels; i++)
        beside |= channels[i].sock >= 0 && channels[i].pid && !channels[i].marked;
    request.mark = beside && request.proc >= 0;
    c->started = now();
    c->cpu_fd = request.cpu_fd >= 0 ? fcntl(request.cpu_fd, F_DUPFD_CLOEXEC, 3) : -1;
    c->cpu_format = request.cpu_format;
    c->cpu_limit = 0;
    c->cpu_before = 0;
    c->alone = !nrunning;
    if (c->alone)
        orphans = (struct tally){0};
    c->cpu_before = c->cpu_fd >= 0 ? cpu_used(c) : cpu_of(&orphans);
    int terminal = request.tty;
    if (request.mark && mark_pair[0] < 0 &&
        own_call(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, (long)mark_pair, 0) < 0)
        mark_pair[0] = -1; // then handing over fails, in the child
    request.mark_sock = mark_pair[1];
    request.alone = c->alone;
    int pid = exec_spawn(&request);
    int mark_fd = request.mark_ino ? receive_mark() : -1;
    if (terminal >= 0)
        close(terminal);
    exec_forget(&request);
    if (pid < 0) {
        if (master >= 0)
            close(master);
        if (c->cpu_fd >= 0)
            close(c->cpu_fd);
        c->cpu_fd = -1;
        if (mark_fd >= 0)
            close(mark_fd);
        return refuse(c, request.step, request.error);
    }
    for (int i = 0; nrunning && i < nchannels; i++)
        channels[i].alone = false;
    c->pid = pid;
    // The program's time begins with its execve. Init itself may wake up long after that.
    c->setup = request.ready > c->started ? request.ready - c->started : 0;
    c->born = c->started;
    c->see_at = c->born + FIRST_SIGHT;
    c->executed = c->never = false;
    c->started += c->setup;
    c->marked = request.mark;
    c->mark = request.mark_ino;
    c->mark_fd = mark_fd;
    c->cause = CAUSE_NONE;
    c->syscall_nr = 0;
    c->wall_at = request.wall_ns ? c->started + request.wall_ns : 0;
    c->cpu_limit = request.cpu_ns;
    c->cpus_milli = request.cpus_milli;
    nrunning++;
    plan_look(c, c->started, 0);
    if (request.flags & (EXEC_REPORT_START | EXEC_TTY)) {
        struct writer w = {.length = 0};
        wr_u32(&w, (uint32_t)pid);
        answer(c->sock, MSG_STARTED, &w, &master, master >= 0);
    }
    if (master >= 0)
        close(master);
}

enum { KILL_FIRST = 0, KILL_TREE = 1 };

static void signal_visited(struct channel *c, int pid) {
    kill(pid, c->syscall_nr); // borrowed for the walk
}

static void on_kill(struct channel *c, struct reader body) {
    uint8_t scope = rd_uint8(&body);
    int sig = (int)rd_uint32(&body);
    if (body.bad || !c->pid)
        return;
    if (scope == KILL_FIRST) {
        kill(c->pid, sig);
    } else if (sig == SIGKILL) {
        end_by(c, CAUSE_KILLED);
    } else {
        int32_t keep = c->syscall_nr;
        c->syscall_nr = sig;
        each_process(c, signal_visited, false);
        c->syscall_nr = keep;
    }
}

// What the policy lets pass by itself.
static bool may_go_on(uint32_t answer) {
    uint32_t action = answer & SECCOMP_RET_ACTION_FULL;
    return action == SECCOMP_RET_ALLOW || action == SECCOMP_RET_LOG;
}

// A call that was reported: the kernel holds its caller until we answer. What is forbidden is never answered; we kill.
// What the policy allows, and a traceless container's filter has reported only because it could leave something behind, is
// noted and goes on: whatever its arguments are by then, it was allowed, and it is noted.
static void on_call(const struct seccomp_notif *n) {
    if (context->policy && may_go_on(judge(context->policy, context->npolicy, &n->data))) {
        struct seccomp_notif_resp resp = {.id = n->id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
        has_traces = true;
        own_call(__NR_ioctl, context->notify, (long)SECCOMP_IOCTL_NOTIF_SEND, (long)&resp, 0,
                 0); // it may have been killed meanwhile
        return;
    }
    int pid = (int)n->pid;
    struct channel *sure = sure_owner_of(pid), *c = sure ? sure : owner_of_mark(mark_of(pid));
    // A caller that was killed meanwhile has no mark, which would point to the unmarked program, and its pid may be another's
    // process by now. One that waits for its answer still was what we have looked at.
    bool has_gone =
        own_call(__NR_ioctl, context->notify, (long)SECCOMP_IOCTL_NOTIF_ID_VALID, (long)&n->id, 0, 0) < 0 && errno == ENOENT;
    if (has_gone)
        c = sure;
    else
        kill(pid, SIGKILL);
    if (!c)
        return;
    if (!c->cause)
        c->syscall_nr = n->data.nr;
    end_by(c, CAUSE_SYSCALL);
}

static void on_notify(void) {
    static struct seccomp_notif n;
    memset(&n, 0, sizeof n);
    if (own_call(__NR_ioctl, context->notify, (long)SECCOMP_IOCTL_NOTIF_RECV, (long)&n, 0, 0) == 0)
        on_call(&n);
}

static bool watch(int fd, uint32_t kind) {
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = kind};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

static bool add_channel(int sock) {
    for (int i = 0; i < MAX_CHANNELS; i++) {
        if (i < nchannels && channels[i].sock >= 0)
            continue;
        if (!watch(sock, (uint32_t)i))
            return false;
        channels[i] = (struct channel){.sock = sock, .cpu_fd = -1, .mark_fd = -1};
        if (i >= nchannels)
            nchannels = i + 1;
        return true;
    }
    return false;
}

// What became of a request for operations: `out` are the descriptors that go back.
struct ops_end {
    int error, count;
    uint32_t index;
    int out[16];
};

static void close_out(struct ops_end *end) {
    while (end->count > 0)
        close(end->out[--end->count]);
}

// Carries the request out in `slots`, and closes what does not go back.
static void carry_out(struct message *m, int *slots, struct ops_end *end) {
    struct reader block = rd_block(&m->body);
    uint32_t wanted = rd_uint32(&m->body);
    int *setup_slots = context->slots;
    context->slots = slots;
    context->nskipped = 0;
    errno = EPROTO;
    end->error = m->body.bad || wanted > 16 || ops_run(context, block) < 0 ? errno : 0;
    end->index = context->index;
    for (uint32_t i = 0; i < wanted && !end->error; i++) {
        uint16_t slot = rd_uint16(&m->body);
        if (m->body.bad || slot >= SLOTS || slots[slot] < 0) {
            end->error = EPROTO;
        } else {
            end->out[end->count++] = slots[slot];
            slots[slot] = -1;
        }
    }
    for (int i = 0; i < SLOTS; i++)
        if (slots[i] >= 0)
            close(slots[i]);
    if (end->error)
        close_out(end);
    context->slots = setup_slots;
}

// The kernel hands a memory map's peak on to what execve makes of the process: what a large request took here for a
// moment must not be the next program's max_rss. proc(5): 5 sets the peak to what is resident now (since Linux 4.0).
static void forget_peak(void) {
    if (peaks >= 0 && write(peaks, "5", 1) < 0) {
        close(peaks);
        peaks = -1;
    }
}

// Waits until the process behind `pidfd` has ended, and answers meanwhile what is reported.
static void serve_until_end(int pidfd) {
    struct pollfd fds[] = {{.fd = pidfd, .events = POLLIN}, {.fd = context->notify, .events = POLLIN}};
    while (!(fds[0].revents & POLLIN)) {
        int n = poll(fds, 2, -1);
        if (n > 0 && fds[1].revents & POLLIN)
            on_notify();
        if (n < 0)
            fds[0].revents = 0;
    }
}

// In a traceless container most of these calls are reported, and init must not wait for its own answer: a process of its own
// makes them, which shares init's descriptors. Programs of the same user could kill it; then the request has failed.
static void carry_out_apart(struct message *m, int *slots, struct ops_end *end) {
    int pair[2] = {-1, -1}, pidfd = -1;
    long pid = -1;
    bool came = false;
    if (pipe2(pair, O_CLOEXEC | O_NONBLOCK) == 0)
        pid = syscall(__NR_clone, X_CLONE_PIDFD | CLONE_FILES | SIGCHLD, 0L, &pidfd, 0L, 0L);
    int error = errno;
    if (pid == 0) {
        carry_out(m, slots, end);
        _exit(write(pair[1], end, sizeof *end) != sizeof *end);
    }
    if (pid > 0) {
        serve_until_end(pidfd);
        while (waitpid((int)pid, NULL, 0) < 0 && errno == EINTR)
            ;
        came = read(pair[0], end, sizeof *end) == sizeof *end;
        error = EIO;
        close(pidfd);
    }
    for (int i = 0; i < 2; i++)
        if (pair[i] >= 0)
            close(pair[i]);
    if (!came) { // what it has opened stays open, in a container that will not be used again
        *end = (struct ops_end){.error = error};
        for (int i = 0; i < SLOTS; i++)
            if (slots[i] >= 0)
                close(slots[i]);
    }
}

// Operations on the live container (files, mostly), in a table of slots of their own. What they open in the slots that
// the request names goes back.
static void on_ops(struct channel *c, struct message *m) {
    static int slots[SLOTS];
    struct ops_end end = {.error = 0};
    struct writer w = {.length = 0};
    for (int i = 0; i < SLOTS; i++)
        slots[i] = i < m->nfds ? m->fds[i] : -1;
    m->nfds = 0;
    if (context->policy) {
        has_traces = true;
        carry_out_apart(m, slots, &end);
    } else {
        carry_out(m, slots, &end);
    }
    wr_u32(&w, (uint32_t)end.error);
    wr_u32(&w, end.index);
    answer(c->sock, MSG_DONE, &w, end.out, end.count);
    close_out(&end);
}

// Uses a link of procfs, whose access time the kernel sets when it is no later than the other two, and then for a day no more
// (relatime). Says whether it is later: nobody's use changes it then.
static bool was_used(const char *link) {
    struct stat st;
    char to[32];
    return readlinkat(AT_FDCWD, link, to, sizeof to) > 0 && fstatat(AT_FDCWD, link, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
           (st.st_atim.tv_sec > st.st_mtim.tv_sec ||
            (st.st_atim.tv_sec == st.st_mtim.tv_sec && st.st_atim.tv_nsec > st.st_mtim.tv_nsec));
}

// Says whether the container is as it was before its first program: then it is ready for another user. What is left by calls that
// were not reported is nothing but numbers of processes, and those begin anew.
static int reset(void) {
    siginfo_t info = {.si_pid = 0};
    if (!context->policy || context->roles[ROLE_LAST_PID] < 0)
        return ENOTSUP;
    if (has_traces)
        return EUCLEAN;
    if (nrunning || waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0 || errno != ECHILD)
        return EBUSY;
    if (!was_used("/proc/self") || !was_used("/proc/thread-self"))
        return EAGAIN;
    if (pwrite(context->roles[ROLE_LAST_PID], "1", 1, 0) != 1)
        return errno;
    orphans = (struct tally){0};
    return 0;
}

static void on_reset(struct channel *c) {
    struct writer w = {.length = 0};
    wr_u32(&w, (uint32_t)reset());
    wr_u32(&w, 0);
    answer(c->sock, MSG_DONE, &w, NULL, 0);
}

static void on_message(struct channel *c, struct message *m) {
    bool is_large = m->mapped || m->head.kind == MSG_OPS;
    switch (m->head.kind) {
    case MSG_EXEC:
        run(c, m->body, m->fds, m->nfds);
        break;
    case MSG_KILL:
        on_kill(c, m->body);
        break;
    case MSG_CHANNEL:
        if (m->nfds == 1 && add_channel(m->fds[0]))
            m->nfds = 0; // kept
        break;
    case MSG_OPS:
        on_ops(c, m);
        break;
    case MSG_RESET:
        on_reset(c);
        break;
    case MSG_SIGNAL_ALL: {
        int sig = (int)rd_uint32(&m->body);
        if (m->body.bad || sig <= 0)
            break;
        for (int i = 0; sig == SIGKILL && i < nchannels; i++)
            if (channels[i].sock >= 0 && channels[i].pid && !channels[i].cause)
                channels[i].cause = CAUSE_KILLED;
        kill(-1, sig);
        break;
    }
    default: // a caller newer than this init; the answer that it waits for will not come, and it will say so
        break;
    }
    message_drop(m);
    if (is_large)
        forget_peak();
}

// A request that could not be received, for init had no room for its descriptors or its body: the caller waits for an answer.
static void on_lost(struct channel *c, struct message *m) {
    struct writer w = {.length = 0};
    if (m->head.kind == MSG_EXEC && !c->pid) {
        refuse(c, STEP_REQUEST, m->lost);
    } else if (m->head.kind == MSG_OPS) {
        wr_u32(&w, (uint32_t)m->lost);
        wr_u32(&w, 0);
        answer(c->sock, MSG_DONE, &w, NULL, 0);
    }
}

// The caller closed its end: its program goes with it.
static void on_hangup(struct channel *c) {
    if (c == &channels[0])
        _exit(0);
    epoll_ctl(epoll, EPOLL_CTL_DEL, c->sock, NULL);
    c->closing = true;
    if (c->pid) // others' programs and deadlines go on meanwhile; finish() closes it
        end_by(c, CAUSE_KILLED);
    else
        close_channel(c);
}

static void serve_channel(struct channel *c) {
    static struct message m;
    if (c->sock < 0 || c->closing)
        return;
    int got = message_receive(c->sock, MSG_DONTWAIT, &m);
    if (got > 0)
        on_message(c, &m);
    else if (got < 0 && errno == EPROTO && m.lost)
        on_lost(c, &m);
    else if (got == 0 || (errno != EAGAIN && errno != EINTR && errno != EPROTO))
        on_hangup(c);
}

static int wait_ms(struct timespec *t) {
    uint64_t next = 0;
    for (int i = 0; i < nchannels; i++) {
        const struct channel *c = &channels[i];
        if (c->sock < 0 || !c->pid)
            continue;
        if (c->look_at && (!next || c->look_at < next))
            next = c->look_at;
        if (!c->executed && (!next || c->see_at < next))
            next = c->see_at;
    }
    if (!next)
        return -1;
    uint64_t at = now(), left = next > at ? next - at : 0;
    t->tv_sec = (time_t)(left / SECOND);
    t->tv_nsec = (long)(left % SECOND);
    return (int)((left + 999999) / 1000000);
}

#ifndef __NR_epoll_pwait2
#define __NR_epoll_pwait2 441
#endif

static int wait_events(struct epoll_event *events) {
    static bool coarse;
    struct timespec t;
    int ms = wait_ms(&t);
    if (!coarse) {
        int n = (int)syscall(__NR_epoll_pwait2, epoll, events, EVENTS, ms < 0 ? NULL : &t, NULL, 0);
        if (n >= 0 || (errno != ENOSYS && errno != EPERM))
            return n;
        coarse = true;
    }
    return (int)syscall(__NR_epoll_pwait, epoll, events, EVENTS, ms, NULL, 0);
}

static _Noreturn void serve(void) {
    struct epoll_event events[EVENTS];
    struct signalfd_siginfo info;
    for (;;) {
        int n = wait_events(events);
        bool ended = false;
        for (int i = 0; i < n; i++) {
            if (events[i].data.u32 == KIND_NOTIFY)
                on_notify();
            else if (events[i].data.u32 == KIND_CHILD)
                ended = true;
            else
                serve_channel(&channels[events[i].data.u32]);
        }
        // First the signal is taken, then what it tells of: an end in between gives another one.
        if (ended && read(ends, &info, sizeof info) > 0)
            reap(WNOHANG);
        if (nrunning) {
            see_who_executed();
            look_at_deadlines();
        }
    }
}

// ---- Set-up ----

// Waits for the launcher's word and takes over the slots that it filled; gives what follows them in the message.
static struct reader await_launcher(struct init_start *s, struct message *m) {
    int got;
    while ((got = message_receive(s->go, 0, m)) < 0 && errno == EINTR)
        ;
    if (got <= 0)
        _exit(1); // the launcher gave up, and has said why
    uint32_t count = rd_uint32(&m->body);
    for (uint32_t i = 0; i < count; i++) {
        uint16_t slot = rd_uint16(&m->body);
        if (m->body.bad || slot >= SLOTS || (int)i >= m->nfds)
            fail_setup(s->channel, PHASE_CLONE, 0, 0, EPROTO);
        if (s->ops.slots[slot] >= 0)
            close(s->ops.slots[slot]);
        s->ops.slots[slot] = m->fds[i];
        m->fds[i] = -1;
    }
    m->nfds = 0;
    return m->body;
}

static void await_go(struct init_start *s) {
    // A buffer of its own: the shared one still holds the request to create this container, which init reads in place.
    static uint8_t space[1024];
    static struct message m = {.space = space, .room = sizeof space};
    await_launcher(s, &m);
    if (!(s->flags & CREATE_PREPARED))
        close(s->go);
}

// The rest of a prepared container's operations, read in place: the shared buffer is free once the first ones are done.
static struct reader await_complete(struct init_start *s) {
    static struct message m;
    struct pollfd fds[] = {{.fd = s->go, .events = POLLIN}, {.fd = s->channel, .events = POLLIN}};
    while (poll(fds, 2, -1) < 0 && errno == EINTR)
        ;
    if (!(fds[0].revents & POLLIN))
        _exit(0); // whoever had it prepared has let go of it
    struct reader rest = await_launcher(s, &m);
    close(s->go);
    return rd_block(&rest);
}

static int take_ids(struct init_start *s) {
    if (s->uid == UINT32_MAX)
        return 0;
    // Those of most programs, so that they need not be set again: its own.
    if (!(s->flags & CREATE_DENY_SETGROUPS) && syscall(__NR_setgroups, 1, &s->gid) < 0)
        return -1;
    if (syscall(__NR_setresgid, s->gid, s->gid, s->gid) < 0 || syscall(__NR_setresuid, s->uid, s->uid, s->uid) < 0)
        return -1;
    // The change of ids has reset both.
    return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 ? -1 : prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
}

static void send_ready(int sock, struct ops *o) {
    struct writer w = {.length = 0};
    wr_u32(&w, o->nskipped);
    for (uint32_t i = 0; i < o->nskipped; i++) {
        wr_u32(&w, o->skipped[i].index);
        wr_u32(&w, (uint32_t)o->skipped[i].error);
    }
    if (message_send(sock, MSG_READY, &w, NULL, 0) < 0)
        _exit(1); // the launcher says so
}

static void close_slots(int *slots) {
    for (int i = 0; i < SLOTS; i++)
        if (slots[i] >= 0)
            close(slots[i]);
}

static _Noreturn void become_program(struct init_start *s) {
    if (!exec_parse(&request, s->exec, s->ops.slots, SLOTS))
        fail_setup(s->channel, PHASE_EXEC, 0, STEP_REQUEST, EPROTO);
    exec_become(&request);
    fail_setup(s->channel, PHASE_EXEC, 0, (uint32_t)request.step, request.error);
}

// SIGCHLD is blocked since the launcher started; a program's process unblocks it.
static int open_ends(void) {
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    return signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void set_up(struct init_start *s, struct reader block) {
    if (ops_run(&s->ops, block) < 0)
        fail_setup(s->channel, PHASE_INIT, s->ops.index, 0, errno);
    s->ops.before = s->ops.index;
}

void init_main(struct init_start *s) {
    int *slots = s->ops.slots;
    prctl(PR_SET_NAME, "sandbox-init", 0, 0, 0);
    umask(0);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 || setsid() < 0)
        fail_setup(s->channel, PHASE_CLONE, 0, 0, errno);
    // Later it is not init's to open. Where there is no /proc, programs may be told of a peak that was init's.
    peaks = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    await_go(s);
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 || take_ids(s) < 0)
        fail_setup(s->channel, PHASE_MAPS, 1, 0, errno);
    s->ops.setup = true;
    if ((ends = open_ends()) < 0) // the filter that is to come need not allow this, nor that:
        fail_setup(s->channel, PHASE_CLONE, 0, 0, errno);
    exec_note_self();
    set_up(s, s->init_ops);
    if (s->flags & CREATE_PREPARED)
        set_up(s, await_complete(s));
    s->ops.setup = false;
    if (s->flags & CREATE_DIRECT) {
        if (s->exec.at != s->exec.end)
            become_program(s);
        send_ready(s->channel, &s->ops);
        char byte;
        while (recv(s->channel, &byte, 1, 0) > 0) // held open for as long as the caller wants
            ;
        _exit(0);
    }
    if (getpid() != 1) // kill(-1) is for PID 1 only: elsewhere it reaches all that the user has
        fail_setup(s->channel, PHASE_INIT, s->ops.index, 3, EPERM);
    context = &s->ops;
    context->before = 0;
    oneshot = s->flags & CREATE_ONESHOT;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0 || !add_channel(s->channel) || !watch(ends, KIND_CHILD) ||
        (s->ops.notify >= 0 && !watch(s->ops.notify, KIND_NOTIFY)))
        fail_setup(s->channel, PHASE_INIT, s->ops.index, 1, errno);
    send_ready(s->channel, &s->ops);
    if (s->exec.at != s->exec.end)
        run(&channels[0], s->exec, slots, SLOTS);
    close_slots(slots);
    serve();
}
