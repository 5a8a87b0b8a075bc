// floor.c: what a container costs when nothing but the kernel is paid.
//
// Theory of operation
// -------------------
// `floor run` makes, in plain C with everything prepared, the system calls that a whole container takes: clone3 of an
// init in a user and a PID namespace, id maps (0 -> 1000000, 65536 ids), the other namespaces, loopback up, an overlay of
// a tmpfs over an id-mapped directory, proc and sys with Docker's masks, /dev, pivot_root, control groups with limits, an
// empty bounding set, no_new_privs, Landlock, a seccomp filter; then a program is started (vfork semantics, joins its
// control groups, rlimits, ids, execve), waited for and accounted; init is killed and reaped, and the groups are removed.
// All mounts happen in the container's own mount namespace: nothing on the host needs unmounting. What the kernel lacks
// (Landlock, mqueue, a file of /proc) fails the whole program: a floor that leaves something out would be too low.
// `floor exec` starts the same program with vfork, execve and wait only.
//
// Each line on standard input asks for one iteration; its answer is one line, the microseconds it took. With -n N
// the iterations are made at once. Whatever fails ends the program with a message, after the groups are removed.
//
// Three processes take part: the parent (the caller, the host's view), init, and the program. Init and the parent
// share a SOCK_SEQPACKET socket: "go" with the id-mapped mounts goes in, the program's wait status comes out.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// From <sys/mount.h>, which some C libraries do not let stand beside <linux/mount.h>.
enum { UMOUNT_DETACH = 2 };
int mount(const char *, const char *, const char *, unsigned long, const void *);
int umount2(const char *, int);

enum { PATH = 4096, MAX_GROUPS = 8, HIGHEST_CAPABILITY = 40, FIRST_ID = 1000000, PROGRAM_ID = 1000 };

static struct {
    bool exec, net, groups, captured;
    long count;
    const char *root, *program; // `program` lies below `root`, which becomes "/"; with `exec` it is the host's
    const char *v1[MAX_GROUPS], *v1_names[MAX_GROUPS];
    int nv1;
    const char *v2;
} option = {.net = true, .count = -1};

static void remove_base(void);
static volatile sig_atomic_t asked_to_stop;
static pid_t main_pid;

static _Noreturn void fail(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    if (getpid() == main_pid)
        remove_base();
    _exit(1);
}

static long check(long result, const char *what) {
    if (result < 0)
        fail(what);
    return result;
}

// ---- The kernel's newer calls ----

static int fs_open(const char *type) {
    return (int)check(syscall(SYS_fsopen, type, FSOPEN_CLOEXEC), type);
}

static void fs_set(int fs, const char *key, const char *value) {
    check(syscall(SYS_fsconfig, fs, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, key, value, 0), key);
}

static int fs_mount(int fs, unsigned attributes) {
    check(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0), "fsconfig create");
    int fd = (int)check(syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, attributes), "fsmount");
    close(fs);
    return fd;
}

static int clone_tree(int at, const char *path) {
    unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (*path ? 0 : AT_EMPTY_PATH);
    return (int)syscall(SYS_open_tree, at, path, flags);
}

static void set_attributes(int mount_fd, uint64_t set, int userns) {
    struct mount_attr attr = {.attr_set = set | (userns >= 0 ? MOUNT_ATTR_IDMAP : 0),
                              .userns_fd = userns >= 0 ? (uint64_t)userns : 0};
    check(syscall(SYS_mount_setattr, mount_fd, "", AT_EMPTY_PATH, &attr, sizeof attr), "mount_setattr");
}

static void attach(int mount_fd, int at, const char *path) {
    check(syscall(SYS_move_mount, mount_fd, "", at, path, MOVE_MOUNT_F_EMPTY_PATH), path);
    close(mount_fd);
}

// ---- Control groups (the host's side) ----

struct group {
    char path[PATH];
    int join;
};

static struct group groups[MAX_GROUPS];
static int ngroups;
static int init_group = -1; // v2 only: where init lives, outside the limits

static void join(char *out, const char *directory, const char *name) {
    if ((size_t)snprintf(out, PATH, "%s/%s", directory, name) >= PATH) {
        errno = ENAMETOOLONG;
        fail(directory);
    }
}

// Of this process alone, so that two floors may run at once.
static void base_path(char *out, const char *parent) {
    char name[32];
    snprintf(name, sizeof name, "floor-%d", main_pid);
    join(out, parent, name);
}

static void write_at(const char *directory, const char *file, const char *text) {
    char path[PATH];
    join(path, directory, file);
    int fd = (int)check(open(path, O_WRONLY | O_CLOEXEC), path);
    check(write(fd, text, strlen(text)), path);
    close(fd);
}

static void make_base(void) {
    char path[PATH], file[PATH];
    for (int i = 0; option.groups && i < option.nv1; i++) {
        base_path(path, option.v1[i]);
        check(mkdir(path, 0755), path);
    }
    if (option.groups && option.v2) {
        base_path(path, option.v2);
        check(mkdir(path, 0755), path);
        write_at(path, "cgroup.subtree_control", "+memory +pids +cpu");
        // CLONE_INTO_CGROUP asks for init's own right to write to cgroup.procs of the program's group (make_groups)
        // and of the common ancestor of that group and of init's: this one.
        join(file, path, "cgroup.procs");
        check(chown(file, FIRST_ID, FIRST_ID), file);
        join(file, path, "init");
        check(mkdir(file, 0755), file);
        init_group = (int)check(open(file, O_RDONLY | O_DIRECTORY | O_CLOEXEC), file);
    }
}

static void remove_base(void) {
    char path[PATH], file[PATH];
    for (int i = 0; i < ngroups; i++)
        rmdir(groups[i].path);
    for (int i = 0; option.groups && i < option.nv1; i++) {
        base_path(path, option.v1[i]);
        rmdir(path);
    }
    if (option.groups && option.v2) {
        base_path(path, option.v2);
        join(file, path, "init");
        rmdir(file);
        rmdir(path);
    }
}

// Whether `name` is one of `names`, which commas part.
static bool is_among(const char *name, const char *names) {
    size_t length = strlen(name);
    for (const char *at = names; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, length) == 0 && (at[length] == ',' || !at[length]))
            return true;
    }
    return false;
}

static void set_v1_limits(const char *names, const char *path) {
    if (is_among("memory", names))
        write_at(path, "memory.limit_in_bytes", "67108864");
    if (is_among("pids", names))
        write_at(path, "pids.max", "32");
    if (is_among("cpu", names))
        write_at(path, "cpu.cfs_quota_us", "100000");
}

static void make_groups(void) {
    ngroups = 0;
    for (int i = 0; option.groups && i < option.nv1; i++) {
        struct group *g = &groups[ngroups++];
        char path[PATH];
        base_path(path, option.v1[i]);
        join(g->path, path, "run");
        check(mkdir(g->path, 0755), g->path);
        set_v1_limits(option.v1_names[i], g->path);
        join(path, g->path, "tasks");
        g->join = (int)check(open(path, O_WRONLY | O_CLOEXEC), path);
    }
    if (option.groups && option.v2) {
        struct group *g = &groups[ngroups++];
        char path[PATH];
        base_path(path, option.v2);
        join(g->path, path, "run");
        check(mkdir(g->path, 0755), g->path);
        write_at(g->path, "memory.max", "67108864");
        write_at(g->path, "pids.max", "32");
        write_at(g->path, "cpu.max", "100000 100000");
        join(path, g->path, "cgroup.procs");
        check(chown(path, FIRST_ID, FIRST_ID), path);
        g->join = (int)check(open(g->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), g->path);
    }
}

static void account(void) {
    static const char *const v1_files[][2] = {{"memory", "memory.max_usage_in_bytes"},
                                              {"memory", "memory.oom_control"},
                                              {"pids", "pids.current"},
                                              {"cpuacct", "cpuacct.usage"}};
    static const char *const v2_files[] = {"memory.peak", "memory.events", "pids.peak", "cpu.stat"};
    char path[PATH], text[1024];
    for (int g = 0; g < ngroups; g++)
        for (size_t i = 0; i < 4; i++) {
            if (!option.v2 && !is_among(v1_files[i][0], option.v1_names[g]))
                continue;
            join(path, groups[g].path, option.v2 ? v2_files[i] : v1_files[i][1]);
            int fd = (int)check(open(path, O_RDONLY | O_CLOEXEC), path);
            check(read(fd, text, sizeof text), path);
            close(fd);
        }
}

static void remove_groups(void) {
    for (int i = 0; i < ngroups; i++) {
        close(groups[i].join);
        // A group stays busy for a moment after its last process was reaped.
        for (int tries = 0; rmdir(groups[i].path) < 0; tries++) {
            if (errno != EBUSY || tries > 10000)
                fail(groups[i].path);
            usleep(50);
        }
    }
    ngroups = 0;
}

// ---- Messages between the parent and init ----

union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int))];
};

static void send_fd(int sock, int fd) {
    char text[] = "go";
    union control control = {.bytes = {0}};
    struct iovec part = {text, sizeof text};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    struct cmsghdr *head = CMSG_FIRSTHDR(&m);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    check(sendmsg(sock, &m, 0), "sendmsg");
}

static int receive_fd(int sock) {
    char text[8];
    int fd;
    union control control;
    struct iovec part = {text, sizeof text};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    if (check(recvmsg(sock, &m, MSG_CMSG_CLOEXEC), "recvmsg") == 0)
        _exit(1); // the parent has failed
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    return fd;
}

// ---- Init: inside the container ----

static void loopback_up(void) {
    int sock = (int)check(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    check(ioctl(sock, SIOCSIFFLAGS, &request), "SIOCSIFFLAGS");
    close(sock);
}

static int scratch; // the one tmpfs that carries the writable layer, /dev, and the empty directory of the masks

// The root: an overlay of a tmpfs of 64 MiB over the id-mapped directory.
static int make_root(int lower) {
    char path[64];
    int fs = fs_open("tmpfs");
    fs_set(fs, "size", "67108864");
    fs_set(fs, "nr_inodes", "16384");
    fs_set(fs, "mode", "0755");
    scratch = fs_mount(fs, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    // An overlay takes only layers that belong to a mount namespace of ours.
    check(syscall(SYS_move_mount, scratch, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH), "move_mount scratch");
    check(syscall(SYS_move_mount, lower, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH), "move_mount lower");
    check(mkdirat(scratch, "upper", 0755), "mkdir upper");
    check(mkdirat(scratch, "work", 0755), "mkdir work");
    check(mkdirat(scratch, "dev", 0755), "mkdir dev");
    check(mkdirat(scratch, "empty", 0555), "mkdir empty");
    fs = fs_open("overlay");
    snprintf(path, sizeof path, "/proc/self/fd/%d", lower);
    fs_set(fs, "lowerdir", path);
    snprintf(path, sizeof path, "/proc/self/fd/%d/upper", scratch);
    fs_set(fs, "upperdir", path);
    snprintf(path, sizeof path, "/proc/self/fd/%d/work", scratch);
    fs_set(fs, "workdir", path);
    int root = fs_mount(fs, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    close(lower);
    check(syscall(SYS_move_mount, root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH), "move_mount root");
    return root;
}

static void make_dev(int root) {
    static const char *const devices[] = {"null", "zero", "full", "random", "urandom", "tty"};
    static const char *const links[][2] = {{"/proc/self/fd", "fd"},
                                           {"/proc/self/fd/0", "stdin"},
                                           {"/proc/self/fd/1", "stdout"},
                                           {"/proc/self/fd/2", "stderr"},
                                           {"pts/ptmx", "ptmx"}};
    char path[64];
    int fs, dev = (int)check(clone_tree(scratch, "dev"), "copy dev");
    set_attributes(dev, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, -1);
    check(syscall(SYS_move_mount, dev, "", root, "dev", MOVE_MOUNT_F_EMPTY_PATH), "move_mount dev");
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        snprintf(path, sizeof path, "/dev/%s", devices[i]);
        int device = (int)check(clone_tree(AT_FDCWD, path), path);
        close((int)check(openat(dev, devices[i], O_WRONLY | O_CREAT | O_CLOEXEC, 0666), devices[i]));
        attach(device, dev, devices[i]);
    }
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        check(symlinkat(links[i][0], dev, links[i][1]), links[i][1]);
    check(mkdirat(dev, "pts", 0755), "mkdir pts");
    fs = fs_open("devpts");
    fs_set(fs, "newinstance", NULL);
    fs_set(fs, "ptmxmode", "0666");
    attach(fs_mount(fs, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), dev, "pts");
    check(mkdirat(dev, "mqueue", 0755), "mkdir mqueue");
    attach(fs_mount(fs_open("mqueue"), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC), dev, "mqueue");
    check(mkdirat(dev, "shm", 01777), "mkdir shm");
    fs = fs_open("tmpfs");
    fs_set(fs, "size", "67108864");
    attach(fs_mount(fs, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV), dev, "shm");
    close(dev);
}

// Each from what is attached: before Linux 6.15 a copy that is not attached yet cannot be copied in turn.
static void cover(int proc, const char *name) {
    struct stat st;
    if (fstatat(proc, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return; // this kernel has none
    int copy = (int)check(S_ISDIR(st.st_mode) ? clone_tree(scratch, "empty") : clone_tree(AT_FDCWD, "/dev/null"), name);
    if (S_ISDIR(st.st_mode))
        set_attributes(copy, MOUNT_ATTR_RDONLY, -1);
    attach(copy, proc, name);
}

static int make_proc(int root) {
    static const char *const masked[] = {"acpi",          "asound",      "interrupts", "kcore",      "keys",
                                         "latency_stats", "sched_debug", "scsi",       "timer_list", "timer_stats"};
    static const char *const read_only[] = {"bus", "fs", "irq", "sys", "sysrq-trigger"};
    // Two, one on the other: the one below is without the covers, and init writes to it.
    int own = fs_mount(fs_open("proc"), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
    check(syscall(SYS_move_mount, own, "", root, "proc", MOVE_MOUNT_F_EMPTY_PATH), "move_mount proc");
    int proc = (int)check(clone_tree(own, ""), "copy proc");
    check(syscall(SYS_move_mount, proc, "", root, "proc", MOVE_MOUNT_F_EMPTY_PATH), "move_mount proc");
    for (size_t i = 0; i < sizeof masked / sizeof *masked; i++)
        cover(proc, masked[i]);
    for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++) {
        int copy = clone_tree(proc, read_only[i]);
        if (copy < 0)
            continue; // this kernel has none
        set_attributes(copy, MOUNT_ATTR_RDONLY, -1);
        attach(copy, proc, read_only[i]);
    }
    if (option.net) { // the kernel lets only the owner of the network namespace mount it
        int sys = fs_mount(fs_open("sysfs"), MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
        check(syscall(SYS_move_mount, sys, "", root, "sys", MOVE_MOUNT_F_EMPTY_PATH), "move_mount sys");
        cover(sys, "firmware");
        cover(sys, "devices/virtual/powercap");
        close(sys);
    }
    close(proc);
    close(scratch);
    return own;
}

static void write_file(int at, const char *path, const char *text) {
    int fd = (int)check(openat(at, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), path);
    check(write(fd, text, strlen(text)), path);
    close(fd);
}

static void forbid_namespaces(int proc) {
    static const char *const kinds[] = {"user", "mnt", "pid", "net", "ipc", "uts", "time"};
    char path[64];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        snprintf(path, sizeof path, "sys/user/max_%s_namespaces", kinds[i]);
        write_file(proc, path, "0");
    }
    close(proc);
}

static void pivot_into(int root) {
    check(fchdir(root), "fchdir");
    check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    check(umount2(".", UMOUNT_DETACH), "umount");
    check(chdir("/"), "chdir");
    close(root);
}

// Everything stays allowed below "/"; what is paid is one ruleset, three rules, and its check at each opened file.
static void install_landlock(void) {
    static const char *const places[] = {"/", "/proc", "/dev"};
    struct {
        uint64_t handled_fs;
    } ruleset = {0x1fff}; // the access rights of Landlock's first version
    int fd = (int)check(syscall(SYS_landlock_create_ruleset, &ruleset, sizeof ruleset, 0), "landlock_create_ruleset");
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        struct {
            uint64_t allowed;
            int32_t parent;
        } __attribute__((packed)) rule = {ruleset.handled_fs, (int)check(open(places[i], O_PATH | O_CLOEXEC), places[i])};
        check(syscall(SYS_landlock_add_rule, fd, 1 /* LANDLOCK_RULE_PATH_BENEATH */, &rule, 0), "landlock_add_rule");
        close(rule.parent);
    }
    check(syscall(SYS_landlock_restrict_self, fd, 0), "landlock_restrict_self");
    close(fd);
}

// A search tree over the numbers `low` to `high` of system calls, with `leaves` verdicts, as real filters are: they
// allow what they find in a few steps. (The kernel runs a filter once for each number when it is installed, to remember
// what is always allowed: a list of comparisons would make that dear.) Returns the end.
static struct sock_filter *tree(struct sock_filter *at, unsigned low, unsigned high, unsigned leaves) {
    if (leaves == 1) {
        *at = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        return at + 1;
    }
    unsigned middle = (low + high) / 2, left = leaves / 2;
    unsigned char skip = (unsigned char)(2 * left - 1); // a tree of n leaves has n - 1 comparisons
    *at = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, middle, skip, 0);
    return tree(tree(at + 1, low, middle, left), middle, high, leaves - left);
}

static void install_filter(void) {
    enum { LEAVES = 50, LENGTH = 2 * LEAVES };
    struct sock_filter filter[LENGTH] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
    struct sock_fprog program = {LENGTH, filter};
    tree(filter + 1, 0, 500, LEAVES);
    check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "seccomp");
}

static char *const no_environment[] = {NULL};

static _Noreturn void become_program(const int *streams, const char *path, bool container) {
    char *const argv[] = {(char *)path, NULL};
    for (int i = 0; i < 3; i++)
        if (dup2(streams[i], i) < 0)
            _exit(126);
    if (container) {
        struct rlimit core = {0, 0}, files = {1024, 1024};
        bool bad = setrlimit(RLIMIT_CORE, &core) < 0 || setrlimit(RLIMIT_NOFILE, &files) < 0;
        bad |= syscall(SYS_setgroups, 0, NULL) < 0 || syscall(SYS_setresgid, PROGRAM_ID, PROGRAM_ID, PROGRAM_ID) < 0;
        bad |= syscall(SYS_setresuid, PROGRAM_ID, PROGRAM_ID, PROGRAM_ID) < 0;
        if (bad)
            _exit(125);
    }
    execve(path, argv, no_environment);
    _exit(127);
}

// clone3 with CLONE_VM and no stack of its own returns twice into one frame, which only vfork() of the C library
// survives, and that knows no control group: so this one copies the (small) address space.
static long clone_into_group(const int *streams, const char *path) {
    struct clone_args args = {
        .flags = CLONE_VFORK | CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)groups[0].join};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        become_program(streams, path, true);
    return check(pid, "start the program in its control group");
}

static long clone_program(const int *streams, const char *path, bool container) {
    if (container && ngroups > 0 && option.v2)
        return clone_into_group(streams, path);
    long pid = vfork();
    if (pid == 0) {
        for (int i = 0; container && i < ngroups; i++)
            if (write(groups[i].join, "0", 1) < 0)
                _exit(124);
        become_program(streams, path, container);
    }
    return check(pid, "start the program");
}

static int wait_for(long pid) {
    int status;
    while (waitpid((pid_t)pid, &status, __WALL) < 0)
        if (errno != EINTR)
            fail("waitpid");
    return status;
}

static _Noreturn void init(int sock, const int *streams) {
    check(unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP | (option.net ? CLONE_NEWNET : 0)), "unshare");
    int lower = receive_fd(sock);
    check(syscall(SYS_setresgid, 0, 0, 0), "setresgid");
    check(syscall(SYS_setresuid, 0, 0, 0), "setresuid");
    check(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable");
    check(sethostname("floor", 5), "sethostname");
    if (option.net)
        loopback_up();
    check(mount("none", "/", NULL, 0x44000 /* MS_REC | MS_PRIVATE */, NULL), "make mounts private");
    int root = make_root(lower);
    make_dev(root);
    int proc = make_proc(root);
    write_file(root, "etc/hosts", "127.0.0.1\tlocalhost\n");
    write_file(root, "etc/resolv.conf", "");
    write_file(root, "etc/hostname", "floor\n");
    pivot_into(root);
    forbid_namespaces(proc);
    for (int capability = 0; capability <= HIGHEST_CAPABILITY; capability++)
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 && errno != EINVAL)
            fail("drop the bounding set");
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    install_landlock();
    install_filter();
    int status = wait_for(clone_program(streams, option.program, true));
    check(send(sock, &status, sizeof status, 0), "send");
    for (;;)
        pause(); // as an init that serves: the parent kills it
}

// ---- The parent: one iteration ----

static void write_proc(pid_t pid, const char *file, const char *text) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    int fd = (int)check(open(path, O_WRONLY | O_CLOEXEC), path);
    check(write(fd, text, strlen(text)), path);
    close(fd);
}

static void send_root(int sock, pid_t pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
    int userns = (int)check(open(path, O_RDONLY | O_CLOEXEC), path);
    int lower = (int)check(clone_tree(AT_FDCWD, option.root), option.root);
    set_attributes(lower, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, userns);
    send_fd(sock, lower);
    close(lower);
    close(userns);
}

static void check_status(int status) {
    if (status == 0)
        return;
    fprintf(stderr, "floor: the program ended with wait status %#x\n", (unsigned)status);
    errno = ECHILD;
    fail("run the program");
}

static void run_container(const int *streams) {
    int sockets[2], pidfd = -1, status;
    make_groups();
    check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), "socketpair");
    struct clone_args args = {
        .flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)&pidfd, .exit_signal = SIGCHLD};
    if (init_group >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)init_group;
    }
    pid_t pid = (pid_t)check(syscall(SYS_clone3, &args, sizeof args), "clone3");
    if (pid == 0) {
        close(sockets[0]);
        init(sockets[1], streams);
    }
    close(sockets[1]);
    write_proc(pid, "uid_map", "0 1000000 65536");
    write_proc(pid, "gid_map", "0 1000000 65536");
    send_root(sockets[0], pid);
    ssize_t got;
    do
        got = recv(sockets[0], &status, sizeof status, 0);
    while (got < 0 && errno == EINTR);
    check(syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0), "kill init");
    wait_for(pid);
    close(pidfd);
    close(sockets[0]);
    account();
    remove_groups();
    if (got != sizeof status) {
        errno = EPROTO;
        fail("init ended early");
    }
    check_status(status);
}

static void drain(int fd) {
    char buffer[4096];
    while (read(fd, buffer, sizeof buffer) > 0)
        ;
    close(fd);
}

static void iterate(int null) {
    int streams[3] = {null, null, null}, out[2], err[2];
    if (option.captured) {
        check(pipe2(out, O_CLOEXEC), "pipe");
        check(pipe2(err, O_CLOEXEC), "pipe");
        streams[1] = out[1];
        streams[2] = err[1];
    }
    long pid = -1;
    if (option.exec)
        pid = clone_program(streams, option.program, false);
    else
        run_container(streams);
    if (option.captured) {
        close(out[1]);
        close(err[1]);
        drain(out[0]);
        drain(err[0]);
    }
    if (pid > 0)
        check_status(wait_for(pid));
}

// ---- Options ----

static const char USAGE[] =
    "usage: floor exec [--captured] [-n COUNT] PROGRAM\n"
    "       floor run [--no-net] [--captured] [-n COUNT] [--v1 NAMES=DIRECTORY]... [--v2 DIRECTORY] --root DIRECTORY PROGRAM\n"
    "PROGRAM is the absolute path of a static program, below the root, which has empty proc, sys, dev and etc.\n"
    "Without --v1 and --v2 no control groups are made.\n";

static _Noreturn void usage(void) {
    fputs(USAGE, stderr);
    exit(2);
}

static void add_v1(char *text) {
    char *equals = strchr(text, '=');
    if (!equals || option.nv1 == MAX_GROUPS)
        usage();
    *equals = 0;
    option.v1_names[option.nv1] = text;
    option.v1[option.nv1++] = equals + 1;
    option.groups = true;
}

static void parse(int argc, char **argv) {
    if (argc < 3 || (strcmp(argv[1], "run") != 0 && strcmp(argv[1], "exec") != 0))
        usage();
    option.exec = strcmp(argv[1], "exec") == 0;
    for (int i = 2; i < argc; i++) {
        bool more = i + 1 < argc;
        if (strcmp(argv[i], "--no-net") == 0)
            option.net = false;
        else if (strcmp(argv[i], "--captured") == 0)
            option.captured = true;
        else if (strcmp(argv[i], "-n") == 0 && more)
            option.count = atol(argv[++i]);
        else if (strcmp(argv[i], "--v1") == 0 && more)
            add_v1(argv[++i]);
        else if (strcmp(argv[i], "--v2") == 0 && more)
            option.v2 = argv[++i], option.groups = true;
        else if (strcmp(argv[i], "--root") == 0 && more)
            option.root = argv[++i];
        else if (argv[i][0] == '/' && !more)
            option.program = argv[i];
        else
            usage();
    }
    if (!option.program || (option.v2 && option.nv1) ||
        (option.exec ? option.root || option.groups || !option.net : !option.root))
        usage();
}

static double microseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void stop(int signal) {
    (void)signal;
    asked_to_stop = 1;
}

// Control groups outlive processes: nothing but SIGKILL may end this one before it has removed them.
static void catch_signals(void) {
    struct sigaction action = {.sa_handler = stop}; // no SA_RESTART: waiting for a line ends
    const int ends[] = {SIGHUP, SIGINT, SIGTERM};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        sigaction(ends[i], &action, NULL);
    signal(SIGPIPE, SIG_IGN); // the failing write is seen
}

int main(int argc, char **argv) {
    char line[16];
    parse(argc, argv);
    main_pid = getpid();
    catch_signals();
    int null = (int)check(open("/dev/null", O_RDWR | O_CLOEXEC), "/dev/null");
    umask(022);
    make_base();
    for (long i = 0; option.count < 0 ? fgets(line, sizeof line, stdin) != NULL : i < option.count; i++) {
        double before = microseconds();
        iterate(null);
        printf("%.1f\n", microseconds() - before);
        if (fflush(stdout) != 0 || asked_to_stop)
            break;
    }
    remove_base();
    return 0;
}
