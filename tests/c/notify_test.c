// notify_test.c: who is blamed for a forbidden call, when the caller waits for its answer, and when it was killed meanwhile.
#define _GNU_SOURCE
#include <signal.h>
#include <sys/types.h>

static int killed[8], nkilled;

static int note_kill(pid_t pid, int sig) {
    (void)sig;
    killed[nkilled++ % 8] = pid;
    return 0;
}

#define kill note_kill
#include "init.c"
#undef kill

#include <linux/filter.h>

#define CHECK(what)                                                                                                              \
    do {                                                                                                                         \
        if (!(what)) {                                                                                                           \
            fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #what, strerror(errno));                             \
            abort();                                                                                                             \
        }                                                                                                                        \
    } while (0)

static int ready[2]; // the child's listener comes over this

// A child whose getppid(2) is reported, and which calls it.
static int start_caller(int *listener) {
    int pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        struct sock_filter code[] = {
            {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr)},
            {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, __NR_getppid},
            {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_USER_NOTIF},
            {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
        };
        struct sock_fprog filter = {4, code};
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        int fd = (int)syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
        if (fd < 0 || message_send(ready[1], MSG_DONE, NULL, &fd, 1) < 0)
            _exit(1);
        syscall(__NR_getppid);
        _exit(0);
    }
    static uint8_t space[64];
    static struct message m = {.space = space, .room = sizeof space};
    CHECK(message_receive(ready[0], 0, &m) > 0 && m.nfds == 1);
    *listener = m.fds[0];
    m.nfds = 0;
    message_drop(&m);
    return pid;
}

static struct seccomp_notif call_of(int listener) {
    struct seccomp_notif n = {.id = 0};
    CHECK(ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &n) == 0);
    return n;
}

static void end(int pid) {
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, NULL, 0) == pid);
}

static bool was_killed(int pid) {
    for (int i = 0; i < nkilled; i++)
        if (killed[i] == pid)
            return true;
    return false;
}

// Two programs, the first unmarked, the second one beside it. Their first processes are nobody's: kills are only noted.
static void set_up_two(void) {
    nkilled = 0;
    nchannels = nrunning = 2;
    channels[0] = (struct channel){.sock = 0, .pid = 0x3ffffff1, .cpu_fd = -1, .mark_fd = -1};
    channels[1] = (struct channel){.sock = 0, .pid = 0x3ffffff2, .cpu_fd = -1, .mark_fd = -1, .marked = true, .mark = 1};
}

int main(void) {
    static struct ops ops;
    int listener;
    context = &ops;
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ready) == 0);
    CHECK((ops.roles[ROLE_PROC] = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC)) >= 0);

    // A caller that waits: it bears no other's mark, so it is the unmarked one's, which is ended with it.
    int pid = start_caller(&listener);
    ops.notify = listener;
    struct seccomp_notif n = call_of(listener);
    set_up_two();
    on_call(&n);
    CHECK(channels[0].cause == CAUSE_SYSCALL && channels[0].syscall_nr == __NR_getppid && !channels[1].cause);
    CHECK(was_killed(pid) && was_killed(channels[0].pid) && nkilled == 2);

    // The same caller with the other program's mark.
    struct stat st;
    CHECK(stat("/proc/self/ns/cgroup", &st) == 0);
    set_up_two();
    channels[1].mark = st.st_ino;
    on_call(&n);
    CHECK(!channels[0].cause && channels[1].cause == CAUSE_SYSCALL && was_killed(channels[1].pid) && nkilled == 2);

    // It was killed meanwhile, and is reaped: nobody is blamed for it, nor killed, least of all who has its pid by now.
    end(pid);
    set_up_two();
    on_call(&n);
    CHECK(!channels[0].cause && !channels[1].cause && nkilled == 0);

    // Where it was a program's first process, or only one program runs, it is known whose it was all the same.
    set_up_two();
    channels[1].pid = pid;
    on_call(&n);
    CHECK(!channels[0].cause && channels[1].cause == CAUSE_SYSCALL);
    set_up_two();
    nrunning = 1;
    channels[0].pid = 0;
    on_call(&n);
    CHECK(channels[1].cause == CAUSE_SYSCALL);
    close(listener);

    // It was killed, but nobody has waited for it: a zombie has no mark either.
    pid = start_caller(&listener);
    ops.notify = listener;
    n = call_of(listener);
    set_up_two();
    kill(pid, SIGKILL);
    siginfo_t info;
    CHECK(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) == 0);
    on_call(&n);
    CHECK(!channels[0].cause && !channels[1].cause && nkilled == 0);
    CHECK(waitpid(pid, NULL, 0) == pid);
    close(listener);
    puts("notify_test: passed");
    return 0;
}
