// soak.c: the programs of soak.py, one for each fate.
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int always = 1;

static int sum(void) {
    unsigned total = 0;
    for (unsigned i = 0; i < 1000; i++)
        total += i * i;
    printf("%u\n", total);
    return 0;
}

static int heap(void) {
    while (always) {
        char *block = malloc(1 << 20);
        if (block)
            memset(block, 1, 1 << 20);
    }
    return 0;
}

static int flood(void) {
    static const char block[4096] = "flood";
    while (always)
        if (write(1, block, sizeof block) < 0)
            return 1;
    return 0;
}

static int spin(void) {
    while (always)
        ;
    return 0;
}

static int leave_file(void) {
    int fd = open("/tmp/left", O_WRONLY | O_CREAT | O_EXCL, 0600);
    return fd < 0 || write(fd, "left", 4) != 4; // that of the run before would be in the way
}

static int leave_child(void) {
    if (fork() == 0)
        for (;;)
            pause();
    return getpid() != 2; // numbers of processes begin anew
}

static int fail(void) {
    return 137;
}

static int fault(void) {
    volatile int *volatile nowhere = NULL;
    return *nowhere;
}

static int kill_itself(void) {
    return kill(getpid(), SIGKILL);
}

static int abort_itself(void) {
    abort();
}

static int try_mount(void) {
    return mount("x", "/tmp", "tmpfs", 0, NULL);
}

static const struct {
    const char *name;
    int (*run)(void);
} FATES[] = {{"sum", sum},          {"fail", fail},       {"abort", abort_itself}, {"fault", fault},
             {"kill", kill_itself}, {"heap", heap},       {"flood", flood},        {"write", leave_file},
             {"fork", leave_child}, {"mount", try_mount}, {"spin", spin},          {"sleep", pause}};

int main(int argc, char **argv) {
    for (size_t i = 0; argc == 2 && i < sizeof FATES / sizeof *FATES; i++)
        if (!strcmp(argv[1], FATES[i].name))
            return FATES[i].run();
    return 2;
}
