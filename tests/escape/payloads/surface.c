// Parts of the kernel that a contained program has no business with. argv[1] says which of them.
#include "try.h"

static void namespaces(void) {
    REACH(syscall(SYS_unshare, CLONE_NEWUSER)); REACH(syscall(SYS_unshare, CLONE_NEWNS)); REACH(syscall(SYS_unshare, CLONE_NEWNET));
    REACH(syscall(SYS_unshare, CLONE_NEWPID)); REACH(syscall(SYS_unshare, CLONE_NEWIPC)); REACH(syscall(SYS_unshare, CLONE_NEWUTS));
    REACH(syscall(SYS_unshare, CLONE_NEWCGROUP)); REACH(syscall(SYS_unshare, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET));
    pid_t child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (child == 0)
        _exit(0);
    tell("clone(CLONE_NEWUSER)", child);
    uint64_t args[8] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
    child = syscall(SYS_clone3, args, sizeof args);
    if (child == 0)
        _exit(0);
    tell("clone3(CLONE_NEWUSER)", child);
    REACH(syscall(SYS_setns, open("/proc/self/ns/mnt", O_RDONLY), 0));
}

static void mounts(void) {
    REACH(mount("none", "/tmp", "tmpfs", 0, 0)); REACH(mount("/", "/tmp", 0, MS_BIND, 0)); REACH(mount(0, "/", 0, MS_REMOUNT | MS_BIND, 0));
    REACH(mount("overlay", "/tmp", "overlay", 0, "lowerdir=/,upperdir=/tmp,workdir=/tmp"));
    REACH(mount("cgroup", "/tmp", "cgroup", 0, "memory")); REACH(mount("none", "/tmp", "cgroup2", 0, 0));
    REACH(mount("proc", "/tmp", "proc", 0, 0)); REACH(mount("sysfs", "/tmp", "sysfs", 0, 0));
    REACH(umount2("/proc/sys", MNT_DETACH)); REACH(syscall(SYS_pivot_root, "/tmp", "/tmp"));
    REACH(syscall(SYS_fsopen, "tmpfs", 0)); REACH(syscall(SYS_open_tree, AT_FDCWD, "/tmp", 1)); REACH(syscall(SYS_fspick, AT_FDCWD, "/tmp", 0));
    REACH(syscall(SYS_move_mount, AT_FDCWD, "/tmp", AT_FDCWD, "/tmp", 0)); REACH(syscall(SYS_mount_setattr, AT_FDCWD, "/tmp", 0, 0, 0));
}

static void calls(void) {
    REACH(syscall(SYS_keyctl, 0, -3, 0)); REACH(syscall(SYS_add_key, "user", "x", "y", 1, -3)); REACH(syscall(SYS_request_key, "user", "x", 0, -3));
    REACH(syscall(SYS_bpf, 0, 0, 0)); REACH(syscall(SYS_io_uring_setup, 4, 0)); REACH(syscall(SYS_userfaultfd, 0));
    REACH(syscall(SYS_perf_event_open, 0, 0, -1, -1, 0)); REACH(syscall(SYS_open_by_handle_at, AT_FDCWD, 0, 0));
    REACH(syscall(SYS_reboot, 0, 0, 0, 0)); REACH(syscall(SYS_kexec_load, 0, 0, 0, ~0UL)); REACH(syscall(SYS_init_module, 0, 0, ""));
    REACH(syscall(SYS_finit_module, -1, "", 0)); REACH(syscall(SYS_delete_module, "", ~0U)); REACH(syscall(SYS_swapon, "/nowhere", 0));
    REACH(syscall(SYS_acct, "/nowhere")); REACH(syscall(SYS_settimeofday, 0, "no time zone")); REACH(syscall(SYS_quotactl, ~0, 0, 0, 0));
    struct iovec { void *base; size_t size; } none[1] = {{0, 0}};
    REACH(syscall(SYS_process_vm_readv, 1, none, 1, none, 1, 0)); REACH(syscall(SYS_fanotify_init, 0, 0)); REACH(syscall(SYS_syslog, 10, 0, 0));
#ifdef __x86_64__
    REACH(syscall(SYS_iopl, 3)); REACH(syscall(SYS_ioperm, 0x80, 1, 1)); REACH(syscall(SYS_modify_ldt, 0, 0, 0));
#endif
}

static void sockets(void) {
    REACH(socket(AF_ALG, SOCK_SEQPACKET, 0)); REACH(socket(AF_VSOCK, SOCK_STREAM, 0)); REACH(socket(AF_PACKET, SOCK_RAW, 0));
    REACH(socket(AF_INET, SOCK_RAW, 1)); REACH(socket(AF_INET6, SOCK_RAW, 58)); REACH(socket(AF_NETLINK, SOCK_RAW, 12));  // nftables
    REACH(socket(AF_NETLINK, SOCK_RAW, 9)); REACH(socket(AF_NETLINK, SOCK_RAW, 6)); REACH(socket(AF_NETLINK, SOCK_RAW, 16));  // audit, xfrm, generic
    REACH(socket(AF_BLUETOOTH, SOCK_RAW, 1)); REACH(socket(AF_KEY, SOCK_RAW, 2)); REACH(socket(AF_RDS, SOCK_SEQPACKET, 0));
    REACH(socket(AF_TIPC, SOCK_STREAM, 0)); REACH(socket(AF_CAN, SOCK_RAW, 1)); REACH(socket(AF_XDP, SOCK_RAW, 0)); REACH(socket(AF_INET, SOCK_DCCP, 0));
    REACH(socket(AF_INET | (1 << 16), SOCK_STREAM, 0));
}

static void devices(void) {
    TRY(mknod("/tmp/disk", S_IFBLK | 0600, makedev(8, 0))); TRY(mknod("/tmp/memory", S_IFCHR | 0600, makedev(1, 1)));
    TRY(open("/dev/mem", O_RDONLY)); TRY(open("/dev/kmsg", O_WRONLY)); TRY(open("/dev/sda", O_RDONLY)); TRY(open("/dev/vda", O_RDONLY));
    TRY(open("/dev/fuse", O_RDWR)); TRY(open("/dev/kvm", O_RDWR)); TRY(open("/dev/net/tun", O_RDWR)); TRY(open("/dev/loop-control", O_RDWR));
}

static void rights(void) {
    TRY(setpriority(PRIO_PROCESS, 0, -5)); TRY(sethostname("x", 1)); TRY(setdomainname("x", 1));
    struct rlimit limit;
    static const struct { int number; const char *name; } kinds[] = {{RLIMIT_NOFILE, "nofile"}, {RLIMIT_CORE, "core"}, {RLIMIT_MEMLOCK, "memlock"}};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        getrlimit(kinds[i].number, &limit);
        if (limit.rlim_max == RLIM_INFINITY) {
            printf("hard limit %s: UNLIMITED\n", kinds[i].name);
            continue;
        }
        limit.rlim_max++;
        char name[64];
        snprintf(name, sizeof name, "raise the hard limit %s", kinds[i].name);
        errno = 0;
        tell(name, setrlimit(kinds[i].number, &limit));
    }
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*attack)(void); } parts[] = {
        {"namespaces", namespaces}, {"mounts", mounts}, {"calls", calls}, {"sockets", sockets}, {"devices", devices}, {"rights", rights}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (argc < 2 || strcmp(argv[1], parts[i].name) == 0)
            parts[i].attack();
    return 0;
}
