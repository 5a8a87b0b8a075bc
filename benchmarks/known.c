// known.c: programs that use amounts which they know, and print them: "cpu NS USER_US SYSTEM_US" or "memory BYTES".
//
//   known user MS | system MS | both MS      burn CPU time until the process's own clock tells MS
//   known forked N MS | threads N MS         N children, or threads, that burn MS each and are waited for
//   known orphan MS | ignored MS             a grandchild whose parent has ended; a child of a parent that ignores SIGCHLD
//   known heap BYTES | stack BYTES | shared BYTES | released BYTES
//   known pair BYTES                         two processes with half each, at the same time
//   known left BYTES                         an orphan's, its parent being dead
//   known file BYTES PATH                    written to a file, which stays
//   known reread BYTES PATH                  written, and then read from the disk
//   known naps N                             gives up the CPU N times
//   known nothing
//
// CPU time is told by the clocks of the processes that burnt it, not by the time that went by.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct shared {
    volatile long long cpu_ns, user_us, system_us; // of processes that have told it
} *shared;

static long long used(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void burn(clockid_t clock, long ms, int is_system) {
    static volatile unsigned long work;
    while (used(clock) < ms * 1000000LL)
        for (int i = 0; i < (is_system ? 200 : 20000); i++)
            work += is_system ? (unsigned long)lseek(-1, 0, SEEK_CUR) : 1;
}

// The last words of whoever burnt CPU time.
static void tell(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    __sync_fetch_and_add(&shared->user_us, u.ru_utime.tv_sec * 1000000LL + u.ru_utime.tv_usec);
    __sync_fetch_and_add(&shared->system_us, u.ru_stime.tv_sec * 1000000LL + u.ru_stime.tv_usec);
    __sync_fetch_and_add(&shared->cpu_ns, used(CLOCK_PROCESS_CPUTIME_ID));
}

static void *map(size_t size, int flags) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
    if (at == MAP_FAILED)
        exit(3);
    return at;
}

static void *touch_all(void *at, size_t size) {
    for (size_t i = 0; i < size; i += 4096)
        ((volatile char *)at)[i] = 1;
    return at;
}

static void *touched(size_t size, int flags) {
    return touch_all(map(size, flags), size);
}

static __attribute__((noinline)) long deep(long left) {
    volatile char frame[4096];
    frame[0] = frame[4095] = 1;
    return left > 0 ? deep(left - (long)sizeof frame) + frame[0] : 0;
}

static void burn_and_tell(long ms) {
    burn(CLOCK_PROCESS_CPUTIME_ID, ms, 0);
    tell();
}

static void *thread(void *ms) {
    burn(CLOCK_THREAD_CPUTIME_ID, (long)ms, 0);
    return NULL;
}

// Runs `what` in a grandchild whose parent has ended before, and waits until it has, too.
static void orphaned(void (*what)(long), long argument) {
    int end[2], start[2];
    char byte;
    if (pipe(end) || pipe(start))
        exit(3);
    if (fork() == 0) {
        if (fork() == 0) {
            close(start[1]);
            close(end[0]);
            if (read(start[0], &byte, 1) != 0) // until its parent, and with it the pipe's writers, have gone
                exit(3);
            what(argument);
            _exit(0);
        }
        _exit(0);
    }
    wait(NULL);
    close(start[1]);
    close(end[1]);
    if (read(end[0], &byte, 1) != 0)
        exit(3);
}

static void touch(long bytes) {
    touched((size_t)bytes, MAP_PRIVATE);
}

static void write_file(const char *path, long bytes) {
    static char block[1 << 16];
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0)
        exit(3);
    for (long left = bytes; left > 0; left -= (long)sizeof block)
        if (write(fd, block, sizeof block) != (ssize_t)sizeof block)
            exit(3);
    close(fd);
}

// From the disk: what was in the page cache is dropped before.
static void reread(const char *path, long bytes) {
    static char block[1 << 16];
    write_file(path, bytes);
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fsync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
        exit(3);
    while (read(fd, block, sizeof block) > 0)
        ;
    close(fd);
}

static void nap(long times) {
    struct timespec moment = {0, 1000};
    for (long i = 0; i < times; i++)
        nanosleep(&moment, NULL);
}

static void in_two(long bytes) {
    int ready[2], go[2];
    char byte;
    if (pipe(ready) || pipe(go))
        exit(3);
    for (int i = 0; i < 2; i++)
        if (fork() == 0) {
            close(go[1]);
            touch(bytes / 2);
            if (write(ready[1], "x", 1) != 1 || read(go[0], &byte, 1) != 0)
                exit(3);
            _exit(0);
        }
    for (int i = 0; i < 2; i++)
        if (read(ready[0], &byte, 1) != 1)
            exit(3);
    close(go[1]);
    while (wait(NULL) > 0)
        ;
}

static int use_memory(const char *what, long bytes, const char *path) {
    if (!strcmp(what, "heap"))
        touch_all(malloc((size_t)bytes), (size_t)bytes);
    else if (!strcmp(what, "stack"))
        deep(bytes);
    else if (!strcmp(what, "shared"))
        touched((size_t)bytes, MAP_SHARED);
    else if (!strcmp(what, "released")) {
        munmap(touched((size_t)bytes, MAP_PRIVATE), (size_t)bytes);
        touch(bytes / 2);
    } else if (!strcmp(what, "pair"))
        in_two(bytes);
    else if (!strcmp(what, "left"))
        orphaned(touch, bytes);
    else if (!strcmp(what, "file"))
        write_file(path, bytes);
    else if (!strcmp(what, "reread"))
        reread(path, bytes);
    else if (!strcmp(what, "naps"))
        nap(bytes);
    else
        return 2;
    printf("memory %ld\n", bytes);
    return 0;
}

static int use_cpu(const char *what, int count, long ms) {
    if (!strcmp(what, "user") || !strcmp(what, "both"))
        burn(CLOCK_PROCESS_CPUTIME_ID, *what == 'b' ? ms / 2 : ms, 0);
    if (!strcmp(what, "system") || !strcmp(what, "both"))
        burn(CLOCK_PROCESS_CPUTIME_ID, ms, 1);
    if (!strcmp(what, "ignored"))
        signal(SIGCHLD, SIG_IGN); // nobody waits for the child: not even the kernel's sums for its parent have it
    for (int i = 0; (!strcmp(what, "forked") || !strcmp(what, "ignored")) && i < count; i++)
        if (fork() == 0) {
            burn_and_tell(ms);
            _exit(0);
        }
    while (wait(NULL) > 0)
        ;
    if (!strcmp(what, "orphan"))
        orphaned(burn_and_tell, ms);
    if (!strcmp(what, "threads")) {
        pthread_t all[64];
        for (int i = 0; i < count && i < 64; i++)
            pthread_create(&all[i], NULL, thread, (void *)ms);
        for (int i = 0; i < count && i < 64; i++)
            pthread_join(all[i], NULL);
    }
    tell();
    printf("cpu %lld %lld %lld\n", shared->cpu_ns, shared->user_us, shared->system_us);
    return 0;
}

int main(int argc, char **argv) {
    shared = map(sizeof *shared, MAP_SHARED);
    if (argc == 2 && !strcmp(argv[1], "nothing"))
        return puts("memory 0"), 0;
    if (argc < 3)
        return fputs("usage: see known.c\n", stderr), 2;
    if (!strcmp(argv[1], "forked") || !strcmp(argv[1], "threads"))
        return argc == 4 ? use_cpu(argv[1], atoi(argv[2]), atol(argv[3])) : 2;
    if (strstr("user system both orphan ignored", argv[1]))
        return use_cpu(argv[1], 1, atol(argv[2]));
    return use_memory(argv[1], atol(argv[2]), argc > 3 ? argv[3] : "");
}
