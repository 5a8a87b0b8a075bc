// Use up something without end: argv[1] says what, argv[2] where.
#include "try.h"

static char page[1 << 16];

static void heap(void) {
    for (size_t step = 1 << 20;;) {
        char *more = malloc(step);
        if (more)
            memset(more, 1, step);
    }
}

static void stack(int depth) {
    volatile char frame[1 << 16];
    memset((char *)frame, depth, sizeof frame);
    stack(depth + 1);
    frame[0]++;
}

static void bss(void) {
    static char much[1L << 30];
    memset(much, 1, sizeof much);
}

static void shared(void) {
    for (;;) {
        char *more = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (more != MAP_FAILED)
            memset(more, 1, 1 << 20);
    }
}

static void file(const char *path, long bytes) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    for (long written = 0; written < bytes; written += sizeof page)
        if (write(fd, page, sizeof page) < 0) {
            printf("file: %s\n", strerror(errno));
            return;
        }
    puts("file: written");
}

static void inodes(const char *directory) {
    char path[4096];
    for (long n = 0;; n++) {
        snprintf(path, sizeof path, "%s/%ld", directory, n);
        int fd = open(path, O_WRONLY | O_CREAT, 0600);
        if (fd < 0) {
            printf("%ld files, then: %s\n", n, strerror(errno));
            return;
        }
        close(fd);
    }
}

static void forks(void) {
    for (;;)
        fork();
}

static void threads(void) {
    // Threads count against the limit of processes.
    long made = 0;
    pthread_t thread;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 1 << 16);
    while (made < 100000 && pthread_create(&thread, &small, (void *(*)(void *))pause, 0) == 0)
        made++;
    printf("%ld threads\n", made);
}

static void zombies(long count) {
    long made = 0;
    for (; made < count; made++) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        if (child < 0)
            break;
    }
    printf("%ld zombies\n", made);
}

static void deep(const char *directory, long levels) {
    long made = 0;
    if (chdir(directory) == 0)
        for (; made < levels && mkdir("d", 0700) == 0 && chdir("d") == 0; made++)
            ;
    printf("%ld levels\n", made);
}

static void output(void) {
    for (long written = 0; written < 10L << 30; written += sizeof page)
        if (write(1, page, sizeof page) < 0)
            return;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "", *where = argc > 2 ? argv[2] : "/tmp";
    long much = argc > 3 ? atol(argv[3]) : 0;
    if (!strcmp(what, "heap")) heap();
    if (!strcmp(what, "stack")) { struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY}; setrlimit(RLIMIT_STACK, &all); stack(0); }
    if (!strcmp(what, "bss")) bss();
    if (!strcmp(what, "shared")) shared();
    if (!strcmp(what, "file")) file(where, much);
    if (!strcmp(what, "inodes")) inodes(where);
    if (!strcmp(what, "forks")) forks();
    if (!strcmp(what, "threads")) threads();
    if (!strcmp(what, "zombies")) zombies(much);
    if (!strcmp(what, "deep")) deep(where, much);
    if (!strcmp(what, "output")) output();
    return 0;
}
