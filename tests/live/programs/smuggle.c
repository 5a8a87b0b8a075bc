// smuggle.c: leaves something for the next program (smuggle leave WHAT), and says what it finds (smuggle look).
//
// What `look` prints is the same, line by line, in every container of a kind that nobody has used before.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { KEY = 4711, PORT = 5555 };

// ---- Leaving ----

static int write_to(const char *path, size_t size) {
    static char block[65536];
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    for (size_t done = 0; fd >= 0 && done < size; done += sizeof block)
        if (write(fd, block, sizeof block) < 0)
            return -1;
    return fd < 0 ? -1 : close(fd);
}

static int leave_tmp(void) {
    return write_to("/tmp/left", 1);
}
static int leave_root(void) {
    return write_to("/left", 1);
}
static int leave_shm_file(void) {
    return write_to("/dev/shm/left", 1);
}
static int leave_memory(void) {
    return write_to("/dev/shm/large", 16 << 20);
}
static int leave_shm(void) {
    return shmget(KEY, 4096, IPC_CREAT | 0666);
}
static int leave_sem(void) {
    return semget(KEY, 1, IPC_CREAT | 0666);
}
static int leave_msg(void) {
    return msgget(KEY, IPC_CREAT | 0666);
}
static int leave_removed_shm(void) {
    return shmctl(shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0666), IPC_RMID, NULL);
}
static int leave_mqueue(void) {
    return mq_open("/left", O_RDWR | O_CREAT, 0600, NULL);
}
static int leave_key(void) {
    return (int)syscall(__NR_add_key, "user", "left", "x", 1L, -4);
} // KEY_SPEC_USER_KEYRING
static int leave_hostname(void) {
    return sethostname("left", 4);
}
static int leave_mode(void) {
    return chmod("/tmp", 0777);
}
static int leave_xattr(void) {
    return setxattr("/tmp", "user.left", "x", 1, 0);
}
static int leave_flag(void) {
    return fcntl(0, F_SETFL, O_NONBLOCK | O_APPEND);
}
static int leave_lock(void) {
    return flock(0, LOCK_EX);
}
static int leave_nice(void) {
    return setpriority(PRIO_PROCESS, 1, 7);
}
static int leave_init_limit(void) {
    struct rlimit limit = {64, 64};
    return prlimit(1, RLIMIT_NOFILE, &limit, NULL);
}
static int leave_init_cpus(void) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    return sched_setaffinity(1, sizeof one, &one);
}

static int leave_removed_file(void) {
    int fd = open("/tmp/short", O_RDWR | O_CREAT, 0600);
    return fd < 0 ? -1 : unlink("/tmp/short");
}

static int leave_nameless_file(void) {
    return open("/tmp", O_RDWR | O_TMPFILE, 0600);
}

static int leave_daemon(void) {
    if (fork() == 0) {
        setsid();
        signal(SIGTERM, SIG_IGN);
        if (fork() == 0)
            for (;;)
                pause();
        _exit(0);
    }
    return wait(NULL);
}

static int leave_numbers(void) { // of processes
    for (int i = 0; i < 20; i++) {
        if (fork() == 0)
            _exit(0);
        wait(NULL);
    }
    return 0;
}

static int leave_cpu_time(void) {
    for (clock_t end = clock() + CLOCKS_PER_SEC / 20; clock() < end;)
        ;
    return 0;
}

static int leave_reads(void) {
    char text[256];
    DIR *dir = NULL;
    const char *places[] = {"/", "/tmp", "/dev", "/dev/shm", "/proc"};
    for (int i = 0; i < 5; i++)
        if ((dir = opendir(places[i])))
            while (readdir(dir))
                ;
    int fd = open("/etc/passwd", O_RDONLY), got = fd < 0 ? -1 : (int)read(fd, text, sizeof text);
    return readlink("/proc/self", text, sizeof text) > 0 && readlink("/proc/thread-self", text, sizeof text) > 0 ? got : -1;
}

static int leave_names(void) { // of what is not there, in the kernel's cache of directory entries
    char path[128];
    for (int i = 0; i < 60000; i++) {
        snprintf(path, sizeof path, "/tmp/%060d", i);
        access(path, F_OK);
    }
    return 0;
}

static struct sockaddr_in loopback(int port) {
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int bound(int port) {
    struct sockaddr_in at = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return bind(fd, (struct sockaddr *)&at, sizeof at) == 0 && listen(fd, 1) == 0 ? fd : -1;
}

static int leave_port(void) {
    return bound(PORT) < 0 ? -1 : leave_daemon();
}

static int leave_time_wait(void) { // who closes first keeps the port for a minute
    struct sockaddr_in at = loopback(PORT);
    int server = bound(PORT), client = socket(AF_INET, SOCK_STREAM, 0);
    if (server < 0 || connect(client, (struct sockaddr *)&at, sizeof at) < 0)
        return -1;
    int peer = accept(server, NULL, NULL);
    shutdown(peer, SHUT_RDWR);
    shutdown(client, SHUT_RDWR);
    return close(peer) | close(client);
}

static int leave_counters(void) { // a datagram to nobody: nothing is open afterwards
    struct sockaddr_in at = loopback(9);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    return (int)sendto(fd, "x", 1, 0, (struct sockaddr *)&at, sizeof at) - 1 + close(fd);
}

static int leave_abstract(void) { // a socket that lies in its own queue outlives the process until the kernel looks for such
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "\0left"};
    char byte = 0, control[CMSG_SPACE(sizeof(int))] = {0};
    int pair[2], fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (bind(fd, (struct sockaddr *)&at, sizeof(sa_family_t) + 5) < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
        return -1;
    for (int i = 0; i < 2; i++) {
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(c), i ? &pair[1] : &fd, sizeof fd);
        if (sendmsg(pair[0], &msg, 0) < 0)
            return -1;
    }
    return 0;
}

static int leave_terminal(void) {
    int master, slave;
    return openpty(&master, &slave, NULL, NULL, NULL) < 0 ? -1 : leave_daemon();
}

static int leave_place(void) {
    return chdir("/tmp") | setenv("LEFT", "x", 1) | (umask(0), 0);
}

#define ITEM(name) {#name, leave_##name}
static const struct {
    const char *name;
    int (*leave)(void);
} ITEMS[] = {ITEM(tmp),          ITEM(root),          ITEM(shm_file),  ITEM(memory),   ITEM(shm),        ITEM(sem),
             ITEM(msg),          ITEM(removed_shm),   ITEM(mqueue),    ITEM(key),      ITEM(hostname),   ITEM(mode),
             ITEM(xattr),        ITEM(flag),          ITEM(lock),      ITEM(nice),     ITEM(init_limit), ITEM(init_cpus),
             ITEM(removed_file), ITEM(nameless_file), ITEM(daemon),    ITEM(numbers),  ITEM(cpu_time),   ITEM(reads),
             ITEM(names),        ITEM(port),          ITEM(time_wait), ITEM(counters), ITEM(abstract),   ITEM(terminal),
             ITEM(place)};

// ---- Looking ----

static void look_at(const char *path) {
    struct stat st;
    if (lstat(path, &st) < 0) {
        printf("%s: %s\n", path, strerror(errno));
        return;
    }
    bool was_read = st.st_atim.tv_sec > st.st_mtim.tv_sec ||
                    (st.st_atim.tv_sec == st.st_mtim.tv_sec && st.st_atim.tv_nsec > st.st_mtim.tv_nsec);
    unsigned long links = strcmp(path, "/proc") ? st.st_nlink : 0; // there it counts all processes of the host
    printf("%s: mode %o links %lu size %lld was-read %d\n", path, st.st_mode, links, (long long)st.st_size, was_read);
}

static void look_into(const char *path) {
    struct dirent **names;
    int count = scandir(path, &names, NULL, alphasort);
    printf("%s:", path);
    for (int i = 0; i < count; i++)
        if (atoi(names[i]->d_name) != getpid())
            printf(" %s", names[i]->d_name);
    printf("\n");
}

static void show(const char *path) {
    char line[1024];
    FILE *file = fopen(path, "r");
    printf("%s: %s\n", path, file ? "" : strerror(errno));
    while (file && fgets(line, sizeof line, file))
        printf("  %s", line);
    if (file)
        fclose(file);
}

// Of init's CPUs; -1: it cannot be told. Where init and a program keep to one CPU until the latter's execve, init is back on all of its own a moment
// after that, which is waited for: what somebody has left there stays.
static int cpus_of_init(void) {
    struct timespec moment = {.tv_nsec = 1000000};
    cpu_set_t mine, its;
    int most = -1;
    for (int tries = 0; tries < 100 && sched_getaffinity(0, sizeof mine, &mine) == 0; tries++, nanosleep(&moment, NULL)) {
        if (sched_getaffinity(1, sizeof its, &its) < 0)
            return -1;
        if (CPU_COUNT(&its) > most)
            most = CPU_COUNT(&its);
        if (most >= CPU_COUNT(&mine))
            break;
    }
    return most;
}

static void look_at_init(void) {
    struct timespec t;
    struct rlimit limit = {0, 0};
    clockid_t clock = (clockid_t)(~1U << 3 | 2);
    printf("init: nice %d", getpriority(PRIO_PROCESS, 1));
    printf(" clock %d", clock_gettime(clock, &t));
    printf(" affinity %d", cpus_of_init());
    printf(" stat %d", access("/proc/1/stat", F_OK));
    printf(" files %d %lu\n", prlimit(1, RLIMIT_NOFILE, NULL, &limit), (unsigned long)limit.rlim_cur);
}

static void look_at_ipc(void) {
    printf("old ipc: %d %d %d %d\n", shmget(KEY, 0, 0), semget(KEY, 0, 0), msgget(KEY, 0), (int)mq_open("/left", O_RDONLY));
    printf("new ipc: %d %d %d\n", shmget(IPC_PRIVATE, 1, IPC_CREAT), semget(IPC_PRIVATE, 1, IPC_CREAT),
           msgget(IPC_PRIVATE, IPC_CREAT));
    printf("key: %ld\n", syscall(__NR_request_key, "user", "left", NULL, 0L));
}

static void look(void) {
    static const char *const places[] = {"/",        "/tmp",  "/dev",       "/dev/shm",         "/dev/mqueue",
                                         "/dev/pts", "/proc", "/proc/self", "/proc/thread-self"};
    char name[256];
    struct stat st = {0};
    printf("pid %d parent %d nice %d umask %o blocked %d\n", getpid(), getppid(), getpriority(PRIO_PROCESS, 0), umask(022),
           fcntl(0, F_GETFL));
    printf("cwd %s variable %s\n", getcwd(name, sizeof name), getenv("LEFT") ? "left" : "none");
    for (int i = 0; i < 9; i++)
        look_at(places[i]);
    look_into("/");
    look_into("/tmp");
    look_into("/dev/shm");
    look_into("/dev/pts");
    look_into("/proc");
    printf("attribute %zd\n", getxattr("/tmp", "user.left", name, sizeof name));
    gethostname(name, sizeof name);
    printf("host %s\n", name);
    look_at_init();
    show("/proc/self/net/dev");
    show("/proc/self/net/snmp");
    show("/proc/self/net/netstat");
    show("/proc/self/net/tcp");
    show("/proc/self/net/unix");
    look_at_ipc();
    int fd = open("/tmp/new", O_RDWR | O_CREAT, 0600), master = posix_openpt(O_RDWR | O_NOCTTY), number = -1;
    fstat(fd, &st);
    printf("new file: inode %lu\n", (unsigned long)st.st_ino);
    printf("new terminal: %d\n", master < 0 ? -1 : ioctl(master, TIOCGPTN, &number) < 0 ? -2 : number);
    printf("port %d\n", bound(PORT) >= 0);
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "look")) {
        look();
        return 0;
    }
    for (size_t i = 0; argc == 3 && i < sizeof ITEMS / sizeof *ITEMS; i++)
        if (!strcmp(argv[2], ITEMS[i].name)) {
            if (ITEMS[i].leave() >= 0)
                return 0;
            perror(argv[2]);
            return 1;
        }
    return 2;
}
