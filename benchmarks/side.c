// What the side-by-side comparison runs: `side nothing`, `side spin COUNT`, `side touch MIB`, `side calls COUNT`, `side fork COUNT`.
// The same work each time, so that whatever differs from run to run is not the program's. `side timed FD PROGRAM [ARGUMENT...]` runs a
// program and writes the microseconds of CPU time that it took, with all that it waited for, to FD: what has to be there where the
// caller cannot wait for the program itself.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int spin(long count) {
    volatile unsigned long sum = 0;
    for (long i = 0; i < count; i++)
        sum += (unsigned long)i;
    return 0;
}

static int touch(long mib) {
    size_t size = (size_t)mib << 20;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    for (size_t i = 0; i < size; i += 4096)
        memory[i] = 1;
    return 0;
}

static int calls(long count) {
    for (long i = 0; i < count; i++)
        syscall(SYS_getppid);
    return 0;
}

static int fork_and_wait(long count) {
    for (long i = 0; i < count; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(spin(10000));
        int status;
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
            return 1;
    }
    return 0;
}

static long long microseconds(struct timeval time) { return time.tv_sec * 1000000LL + time.tv_usec; }

static int timed(int fd, char **argv) {
    pid_t pid = fork();
    if (pid == 0) {
        close(fd);
        execv(argv[0], argv);
        _exit(127);
    }
    int status;
    struct rusage usage;
    if (pid < 0 || wait4(pid, &status, 0, &usage) != pid)
        return 1;
    dprintf(fd, "%lld\n", microseconds(usage.ru_utime) + microseconds(usage.ru_stime));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int main(int argc, char **argv) {
    if (argc > 3 && strcmp(argv[1], "timed") == 0)
        return timed(atoi(argv[2]), argv + 3);
    long count = argc == 3 ? atol(argv[2]) : 0;
    if (argc == 2 && strcmp(argv[1], "nothing") == 0)
        return 0;
    if (count > 0 && strcmp(argv[1], "spin") == 0)
        return spin(count);
    if (count > 0 && strcmp(argv[1], "touch") == 0)
        return touch(count);
    if (count > 0 && strcmp(argv[1], "calls") == 0)
        return calls(count);
    if (count > 0 && strcmp(argv[1], "fork") == 0)
        return fork_and_wait(count);
    fputs("usage: side nothing | spin COUNT | touch MIB | calls COUNT | fork COUNT\n", stderr);
    return 2;
}
