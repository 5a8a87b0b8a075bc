// held.c: see held.h.
//
// Theory of operation
// -------------------
// The last process of a mount namespace unmounts everything in it before its parent hears of its end, which takes three or
// four grace periods of RCU: 0.4 ms, half of what ending a container takes. The last process of a network namespace
// leaves that to a kernel thread, which then holds locks that removing the container's control groups waits for.
// So the launcher holds both over the end of init, and lets go of them when it has said that the container is gone:
// in a process of its own, for it would wait for the same grace periods.
//
// What is unmounted late must be in nobody's way. The caller asks for this only where a container shows nothing of his (a
// file system of his would stay busy for a moment), and memory in the container's tmpfs counts as his own: what has more
// than a little is let go of before.
#define _GNU_SOURCE
#include "held.h"
#include "sys.h"
#include "wire.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>

enum { LITTLE = 4 << 20, QUEUE = 16 << 10, MOST = 4 };

static int releaser = -1; // the socket to it
static struct held waiting[MOST];
static int nwaiting;
static bool has_ended; // the launcher leaves, and waits for all its children

static void close_both(struct held *h) {
    for (int i = 0; i < HELD; i++)
        if (h->fds[i] >= 0)
            close(h->fds[i]);
    free(h->left);
    *h = HELD_NOTHING;
}

void held_take(struct held *h, int pid, const char *left) {
    static const char *const names[HELD] = {"mnt", "net"};
    char path[48];
    if (h->left)
        return;
    h->left = strdup(left);
    for (int i = 0; i < HELD && h->left; i++) {
        snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, names[i]);
        h->fds[i] = open(path, O_RDONLY | O_CLOEXEC);
        if (h->fds[i] < 0) // without privileges, say: init is not dumpable
            close_both(h);
    }
}

void held_weigh(struct held *h) {
    char text[24] = "";
    if (!h->left)
        return;
    int fd = open(h->left, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (n <= 0 || strtoull(text, NULL, 10) > LITTLE)
        close_both(h);
}

static _Noreturn void release_all(int sock) {
    static struct message m;
    prctl(PR_SET_NAME, "sandbox-release", 0, 0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); // what is in the socket then goes with it
    dup2(sock, 3);
    close_range_(4, ~0U, 0);
    int got;
    while ((got = message_receive(3, 0, &m)) > 0 || (got < 0 && (errno == EINTR || errno == EPROTO)))
        if (got > 0)
            message_drop(&m);
    _exit(0);
}

static void start_releaser(void) {
    int pair[2], room = QUEUE; // when it falls behind so far, the launcher waits itself
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return;
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    pid_t pid = fork();
    if (pid == 0)
        release_all(pair[1]);
    close(pair[1]);
    if (pid < 0)
        close(pair[0]);
    else
        releaser = pair[0];
}

static void end_releaser(void) {
    if (releaser >= 0)
        close(releaser);
    releaser = -1;
}

static void let_go(struct held *h) {
    struct writer nothing = {.length = 0};
    if (releaser < 0)
        start_releaser();
    if (releaser >= 0 && message_send(releaser, MSG_FINISH, &nothing, h->fds, HELD) < 0 && errno != EAGAIN)
        end_releaser(); // it has died
    close_both(h);
}

void held_release(struct held *h) {
    if (!h->left)
        return;
    if (has_ended)
        return close_both(h);
    if (nwaiting == MOST) {
        let_go(&waiting[0]); // the oldest
        memmove(waiting, waiting + 1, (size_t)--nwaiting * sizeof *waiting);
    }
    waiting[nwaiting++] = *h;
    *h = HELD_NOTHING;
}

bool held_waits(void) {
    return nwaiting > 0;
}

void held_let_go(void) {
    while (nwaiting > 0)
        let_go(&waiting[--nwaiting]);
}

void held_end(void) {
    held_let_go();
    end_releaser();
    has_ended = true;
}
