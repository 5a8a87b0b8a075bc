// faults.h: make one chosen system call of the launcher fail, or wait. Only for tests: the launcher is compiled with
// `-include faults.h`, and its sources know nothing of it.
//
// Each name at the end of this file becomes a macro that counts its calls, for each role (who calls). The call that was asked
// for is not made: it returns -1 with the errno that was asked for. Or it is made later: its process says that it is there, and
// waits to be told to go on, so that somebody can be killed meanwhile. What is asked for and what was counted lies in a file that
// all of the launcher's processes, and the test, have mapped (FAULTS_FILE; tests/faults/faulty.py has the same layout).
#ifndef SANDBOX_FAULTS_H
#define SANDBOX_FAULTS_H
#define _GNU_SOURCE
// All headers that the sources include: after the macros, a prototype would be taken for a call.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { STARTER, LAUNCHER, INIT, PROGRAM, HELPER, FAULT_ROLES };
enum { FAULT_NONE, FAULT_FAIL, FAULT_WAIT };
enum { FAULT_LOG = 8192, FAULT_TEXT = 60 };

struct fault_state {
    int32_t action, role, number, error; // asked for: what becomes of which call of whom
    int32_t reached, go;                 // it came to that call; a waiting one may go on
    int32_t starter, launcher;           // pids
    uint32_t counts[FAULT_ROLES], logged;
    struct {
        uint32_t role;
        char text[FAULT_TEXT];
    } log[FAULT_LOG];
};

__attribute__((weak)) struct fault_state *fault_state;
__attribute__((weak, used)) const char fault_mark[] = "this launcher has faults";
__attribute__((weak)) bool fault_in_init; // a process of its own memory has its own; a program's shares init's

__attribute__((constructor, unused)) static void fault_begin(void) {
    int fd = fault_state ? -1 : open(FAULTS_FILE, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    fault_state = mmap(NULL, sizeof *fault_state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    fault_state->starter = getpid();
}

__attribute__((unused)) static int fault_role(void) {
    int pid = getpid();
    if (pid == 1)
        fault_in_init = true;
    if (fault_in_init)
        return pid == 1 ? INIT : PROGRAM;
    if (pid == fault_state->starter)
        return STARTER;
    if (!fault_state->launcher)
        fault_state->launcher = pid; // nobody else is there yet
    return pid == fault_state->launcher ? LAUNCHER : HELPER;
}

// Whether the call that is about to be made is to fail.
__attribute__((unused)) static bool fault_here(const char *file, int line, const char *call) {
    struct fault_state *s = fault_state;
    int error = errno, role = fault_role();
    int32_t number = (int32_t)__atomic_fetch_add(&s->counts[role], 1, __ATOMIC_SEQ_CST);
    uint32_t at = __atomic_fetch_add(&s->logged, 1, __ATOMIC_SEQ_CST);
    if (at < FAULT_LOG) {
        const char *name = strrchr(file, '/');
        s->log[at].role = (uint32_t)role;
        snprintf(s->log[at].text, FAULT_TEXT, "%s:%d %s", name ? name + 1 : file, line, call);
    }
    errno = error;
    if (s->action == FAULT_NONE || role != s->role || number != s->number)
        return false;
    __atomic_store_n(&s->reached, 1, __ATOMIC_SEQ_CST);
    if (s->action == FAULT_WAIT) {
        struct timespec pause = {0, 500000};
        while (!__atomic_load_n(&s->go, __ATOMIC_SEQ_CST))
            nanosleep(&pause, NULL);
        errno = error;
        return false;
    }
    errno = s->error;
    return true;
}

#define FAULT(failed, call) (fault_here(__FILE__, __LINE__, #call) ? (__typeof__(call))(failed) : (call))
#define FAIL(call)          FAULT((intptr_t)-1, call)
#define FAIL_NULL(call)     FAULT((intptr_t)0, call)
// close(2) has closed, whatever it says.
#define close(fd) (fault_here(__FILE__, __LINE__, "close(" #fd ")") ? ((close)(fd), -1) : (close)(fd))

#define malloc(...)        FAIL_NULL(malloc(__VA_ARGS__))
#define realloc(...)       FAIL_NULL(realloc(__VA_ARGS__))
#define strdup(...)        FAIL_NULL(strdup(__VA_ARGS__))
#define fdopendir(...)     FAIL_NULL(fdopendir(__VA_ARGS__))
#define chdir(...)         FAIL(chdir(__VA_ARGS__))
#define chmod(...)         FAIL(chmod(__VA_ARGS__))
#define clone(...)         FAIL(clone(__VA_ARGS__))
#define dup2(...)          FAIL(dup2(__VA_ARGS__))
#define epoll_create1(...) FAIL(epoll_create1(__VA_ARGS__))
#define epoll_ctl(...)     FAIL(epoll_ctl(__VA_ARGS__))
#define epoll_wait(...)    FAIL(epoll_wait(__VA_ARGS__))
#define execve(...)        FAIL(execve(__VA_ARGS__))
#define fchdir(...)        FAIL(fchdir(__VA_ARGS__))
#define fchmod(...)        FAIL(fchmod(__VA_ARGS__))
#define fchown(...)        FAIL(fchown(__VA_ARGS__))
#define fcntl(...)         FAIL(fcntl(__VA_ARGS__))
#define fork()             FAIL(fork())
#define fstat(...)         FAIL(fstat(__VA_ARGS__))
#define fstatat(...)       FAIL(fstatat(__VA_ARGS__))
#define ftruncate(...)     FAIL(ftruncate(__VA_ARGS__))
#define getrlimit(...)     FAIL(getrlimit(__VA_ARGS__))
#define ioctl(...)         FAIL(ioctl(__VA_ARGS__))
#define kill(...)          FAIL(kill(__VA_ARGS__))
#define mkdir(...)         FAIL(mkdir(__VA_ARGS__))
#define mkdirat(...)       FAIL(mkdirat(__VA_ARGS__))
#define mmap(...)          FAIL(mmap(__VA_ARGS__))
#define mount(...)         FAIL(mount(__VA_ARGS__))
#define nanosleep(...)     FAIL(nanosleep(__VA_ARGS__))
#define open(...)          FAIL(open(__VA_ARGS__))
#define openat(...)        FAIL(openat(__VA_ARGS__))
#define poll(...)          FAIL(poll(__VA_ARGS__))
#define prctl(...)         FAIL(prctl(__VA_ARGS__))
#define pread(...)         FAIL(pread(__VA_ARGS__))
#define read(...)          FAIL(read(__VA_ARGS__))
#define recv(...)          FAIL(recv(__VA_ARGS__))
#define recvmsg(...)       FAIL(recvmsg(__VA_ARGS__))
#define renameat(...)      FAIL(renameat(__VA_ARGS__))
#define rmdir(...)         FAIL(rmdir(__VA_ARGS__))
#define send(...)          FAIL(send(__VA_ARGS__))
#define sendmsg(...)       FAIL(sendmsg(__VA_ARGS__))
#define sethostname(...)   FAIL(sethostname(__VA_ARGS__))
#define setns(...)         FAIL(setns(__VA_ARGS__))
#define setrlimit(...)     FAIL(setrlimit(__VA_ARGS__))
#define setsid()           FAIL(setsid())
#define setsockopt(...)    FAIL(setsockopt(__VA_ARGS__))
#define signalfd(...)      FAIL(signalfd(__VA_ARGS__))
#define sigprocmask(...)   FAIL(sigprocmask(__VA_ARGS__))
#define socket(...)        FAIL(socket(__VA_ARGS__))
#define socketpair(...)    FAIL(socketpair(__VA_ARGS__))
#define statx(...)         FAIL(statx(__VA_ARGS__))
#define symlinkat(...)     FAIL(symlinkat(__VA_ARGS__))
#define syscall(...)       FAIL(syscall(__VA_ARGS__))
#define umount2(...)       FAIL(umount2(__VA_ARGS__))
#define unlinkat(...)      FAIL(unlinkat(__VA_ARGS__))
#define unshare(...)       FAIL(unshare(__VA_ARGS__))
#define vfork()            FAIL(vfork())
#define wait4(...)         FAIL(wait4(__VA_ARGS__))
#define waitid(...)        FAIL(waitid(__VA_ARGS__))
#define waitpid(...)       FAIL(waitpid(__VA_ARGS__))
#define write(...)         FAIL(write(__VA_ARGS__))
#endif
