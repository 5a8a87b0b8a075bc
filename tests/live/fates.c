// fates.c: programs that end, or have to be ended, in every way there is: `fates NAME`; and `fates after`, which says whether a
// container is as it should be when such a program has been in it. For test_verdicts.py.
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MANY = 512 << 20 }; // bytes: more than any limit of the tests

static char zeros[MANY]; // .bss
static char block[1 << 16];
static volatile int zero;

static void spin(void) {
    for (volatile unsigned long i = 0;; i++)
        ;
}

static void *spin_thread(void *unused) {
    spin();
    return unused;
}

static void touch(char *at, size_t size) {
    for (size_t i = 0; i < size; i += 4096)
        at[i] = 1;
}

static void *mapped(int flags) {
    void *at = mmap(NULL, MANY, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
    if (at == MAP_FAILED)
        exit(3);
    return at;
}

static void heap(void) {
    for (;;) {
        char *at = malloc(1 << 16);
        if (!at)
            exit(3);
        touch(at, 1 << 16);
    }
}

#pragma GCC diagnostic ignored "-Winfinite-recursion"
static __attribute__((noinline)) int deep(int n) {
    volatile char frame[4096];
    frame[0] = (char)n;
    return deep(n + 1) + frame[0];
}

static void write_for_ever(int fd) {
    while (write(fd, block, sizeof block) > 0)
        ;
    exit(3);
}

static void write_file(const char *path) {
    write_for_ever(open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666));
}

// More than the limit passes through the page cache, which the kernel takes back.
static void page_cache(void) {
    int fd = open("/disk/cache", O_RDWR | O_CREAT | O_TRUNC, 0666);
    // What a slow disk has not taken yet cannot be taken back: then the kernel does give up.
    for (int i = 0; i < 512; i++)
        if (write(fd, block, sizeof block) != (ssize_t)sizeof block || (i % 16 == 15 && fdatasync(fd) < 0))
            exit(3);
    lseek(fd, 0, SEEK_SET);
    while (read(fd, block, sizeof block) > 0)
        ;
    exit(unlink("/disk/cache") == 0 ? 0 : 3);
}

static void child(void) {
    if (fork() == 0)
        spin();
    wait(NULL);
}

static void thread(void) {
    pthread_t other;
    pthread_create(&other, NULL, spin_thread, NULL);
    pthread_join(other, NULL);
}

// The first thread ends, which makes its process look like a zombie; the other goes on.
static void thread_alone(void) {
    pthread_t other;
    pthread_create(&other, NULL, spin_thread, NULL);
    pthread_exit(NULL);
}

static void daemon_(void) {
    int ready[2];
    char byte;
    if (pipe(ready))
        exit(3);
    if (fork() == 0) {
        setsid();
        if (fork() == 0) {
            signal(SIGTERM, SIG_IGN);
            if (write(ready[1], "x", 1) == 1)
                spin();
        }
        _exit(0);
    }
    exit(read(ready[0], &byte, 1) == 1 ? 0 : 3);
}

static void fork_bomb(void) {
    for (;;)
        fork();
}

static void thread_bomb(void) {
    pthread_t each;
    for (;;)
        pthread_create(&each, NULL, spin_thread, NULL);
}

// After so many milliseconds: ends for want of memory, by its own signal, by itself.
static void at(const char *ms, const char *what) {
    long us = atol(ms) * 1000;
    struct timespec pause = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&pause, NULL);
    if (!strcmp(what, "memory"))
        touch(mapped(MAP_PRIVATE), MANY);
    if (!strcmp(what, "kill"))
        kill(getpid(), SIGKILL);
    exit(7);
}

// Nobody but init and us is here, nothing stops us, and memory, time and output are ours as on the first day.
static void after(void) {
    int others = 0;
    DIR *proc = opendir("/proc");
    for (struct dirent *d; proc && (d = readdir(proc));)
        others += isdigit((unsigned char)*d->d_name) && atoi(d->d_name) > 1 && atoi(d->d_name) != getpid();
    unlink("/tmp/flood");
    unlink("/dev/shm/flood");
    touch(malloc(1 << 20), 1 << 20);
    printf("%d others\n", others);
    exit(0);
}

static const struct {
    const char *name;
    void (*run)(void);
} fates[] = {
    {"busy", spin},           {"heap", heap},           {"child", child},           {"thread", thread}, {"thread_alone", thread_alone},
    {"daemon", daemon_},      {"fork_bomb", fork_bomb}, {"page_cache", page_cache}, {"after", after},   {"thread_bomb", thread_bomb},
};

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "";
    for (size_t i = 0; i < sizeof fates / sizeof *fates; i++)
        if (!strcmp(name, fates[i].name))
            fates[i].run();
    if (!strcmp(name, "sleep"))
        sleep(1000);
    if (!strcmp(name, "pause"))
        pause();
    if (!strcmp(name, "stop"))
        raise(SIGSTOP);
    if (!strcmp(name, "stack"))
        return deep(0);
    if (!strcmp(name, "bss"))
        touch(zeros, sizeof zeros);
    if (!strcmp(name, "mmap"))
        touch(mapped(MAP_PRIVATE), MANY);
    if (!strcmp(name, "shm"))
        touch(mapped(MAP_SHARED), MANY);
    if (!strcmp(name, "write"))
        write_file(argv[2]);
    if (!strcmp(name, "flood"))
        write_for_ever(atoi(argv[2]));
    if (!strcmp(name, "signal"))
        raise(atoi(argv[2]));
    if (!strcmp(name, "segv"))
        *(volatile int *)8 = 1;
    if (!strcmp(name, "abort"))
        abort();
    if (!strcmp(name, "fpe"))
        return 100 / zero;
    if (!strcmp(name, "exit"))
        return atoi(argv[2]);
    if (!strcmp(name, "denied"))
        mount("none", "/tmp", "tmpfs", 0, "");
    if (!strcmp(name, "at"))
        at(argv[2], argv[3]);
    return 3;
}
