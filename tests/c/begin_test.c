// begin_test.c: what is said of a program that SIGKILL ended, by whether it had come past its execve.
#define _GNU_SOURCE
#include <signal.h>
#include <sys/types.h>

static int note_kill(pid_t pid, int sig) {
    (void)pid, (void)sig;
    return 0;
}

#define kill note_kill
#include "init.c"
#undef kill

#define CHECK(what)                                                                                                              \
    do {                                                                                                                         \
        if (!(what)) {                                                                                                           \
            fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #what, strerror(errno));                             \
            abort();                                                                                                             \
        }                                                                                                                        \
    } while (0)

static int told[2]; // what init says of the program comes over this

// A child that waits to be killed, in a program of its own or before it.
static int start(bool execute) {
    int begun[2];
    CHECK(pipe2(begun, O_CLOEXEC) == 0);
    int pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        if (execute)
            execl("/bin/sleep", "sleep", "60", NULL);
        else
            close(begun[1]);
        for (;;)
            pause();
    }
    char none;
    close(begun[1]);
    CHECK(read(begun[0], &none, 1) == 0); // execve has closed it, after what it does to the flags
    close(begun[0]);
    return pid;
}

// Of the program `pid`, which began `age` ago, as the only one that is not marked; another one runs.
static void one_of_two(int pid, uint64_t age) {
    memset(channels, 0, sizeof channels);
    nchannels = nrunning = 2;
    channels[0] = (struct channel){.sock = told[0], .pid = pid, .cpu_fd = -1, .mark_fd = -1, .marked = true, .mark = 1, .started = now() - age};
    channels[0].born = channels[0].started;
    channels[0].see_at = channels[0].born + FIRST_SIGHT;
    channels[1] = (struct channel){.sock = told[0], .pid = getpid(), .cpu_fd = -1, .mark_fd = -1, .executed = true};
}

static void end_and_reap(int pid, int sig) {
    siginfo_t info;
    CHECK(kill(pid, sig) == 0);
    CHECK(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) == 0);
    reap(WNOHANG);
    CHECK(channels[0].pid == 0 && nrunning == 1);
}

static void check_told(uint8_t cause, uint32_t status, uint32_t detail) {
    static uint8_t space[512];
    static struct message m = {.space = space, .room = sizeof space};
    CHECK(message_receive(told[1], 0, &m) > 0 && m.head.kind == MSG_END);
    struct reader r = m.body;
    CHECK(rd_uint8(&r) == cause && rd_uint32(&r) == status && rd_uint32(&r) == detail);
    message_drop(&m);
}

int main(void) {
    static int slots[SLOTS];
    struct ops ops = {.slots = slots, .userns = -1, .notify = -1, .roles = {[0 ... ROLES - 1] = -1}};
    context = &ops;
    ops.roles[ROLE_PROC] = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    CHECK(ops.roles[ROLE_PROC] >= 0 && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, told) == 0);

    // Its timer may have ended it, and it had not begun.
    int pid = start(false);
    one_of_two(pid, 2 * SECOND);
    see_who_executed();
    CHECK(!channels[0].executed && channels[0].see_at > now());
    end_and_reap(pid, SIGKILL);
    check_told(CAUSE_NOT_STARTED, STEP_EXECVE, ETIMEDOUT);

    // The same by another signal, or before the timer: it is not that.
    pid = start(false);
    one_of_two(pid, 2 * SECOND);
    end_and_reap(pid, SIGTERM);
    check_told(CAUSE_NONE, SIGTERM, 0);
    pid = start(false);
    one_of_two(pid, SECOND / 2);
    end_and_reap(pid, SIGKILL);
    check_told(CAUSE_NONE, SIGKILL, 0);

    // Killed by us, for a reason.
    pid = start(false);
    one_of_two(pid, 2 * SECOND);
    channels[0].cause = CAUSE_WALL;
    end_and_reap(pid, SIGKILL);
    check_told(CAUSE_WALL, SIGKILL, 0);

    // It had begun: it was killed like any other.
    pid = start(true);
    one_of_two(pid, 2 * SECOND);
    see_who_executed();
    CHECK(channels[0].executed);
    end_and_reap(pid, SIGKILL);
    check_told(CAUSE_NONE, SIGKILL, 0);
    pid = start(true);
    one_of_two(pid, 2 * SECOND); // and nobody has looked before
    end_and_reap(pid, SIGKILL);
    check_told(CAUSE_NONE, SIGKILL, 0);

    // Once it has been seen after it, a thread that is killed in an execve of its own is the program's end.
    pid = start(false);
    one_of_two(pid, 2 * SECOND);
    channels[0].executed = true;
    end_and_reap(pid, SIGKILL);
    check_told(CAUSE_NONE, SIGKILL, 0);
    puts("begin_test: passed");
    return 0;
}
