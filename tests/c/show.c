// show.c: reads a body from standard input and prints what the C side makes of it, for tests/unit/test_wire.py.
//
//   show exec NFDS | show create NFDS | show ops      (descriptor reference n is printed as n)
#include "stubs.h"
#undef close
#undef write
#undef pread
#undef pwrite
#undef lseek
#undef utimensat
#undef fstat
#undef fstatat
#undef statx
#undef syscall
#undef openat
#undef mkdirat
#undef unlinkat
#undef fchmodat
#undef fchownat
#undef symlinkat
#undef ftruncate
#undef fchown
#undef fchmod
#undef fchdir
#undef chdir
#undef mount
#undef umount2
#undef sethostname
#undef setdomainname
#undef setns
#undef fcntl
#undef socket
#undef ioctl
#undef prctl
#define main launcher_main
#include "launcher.c"
#undef main
#include "exec.h"

static void hex(const char *name, const void *data, size_t size) {
    printf("%s ", name);
    for (size_t i = 0; i < size; i++)
        printf("%02x", ((const uint8_t *)data)[i]);
    printf("\n");
}

static void text(const char *name, const char *value) { hex(name, value, strlen(value)); }

static int show_exec(struct reader body, int nfds) {
    static struct exec_request x;
    int fds[WIRE_FDS];
    for (int i = 0; i < nfds; i++)
        fds[i] = i;
    if (!exec_parse(&x, body, fds, nfds))
        return puts("malformed"), 0;
    printf("flags %u\nuid %u\ngid %u\numask %u\nwall_ns %llu\ncpu_ns %llu\ncpus_milli %u\n", x.flags, x.uid, x.gid, x.umask,
           (unsigned long long)x.wall_ns, (unsigned long long)x.cpu_ns, x.cpus_milli);
    printf("cpu_fd %d\ncpu_format %u\ninto_cgroup %d\nrows %u\ncolumns %u\nngroups %u\n", x.cpu_fd, x.cpu_format, x.into_cgroup, x.rows, x.columns, x.ngroups);
    for (uint32_t i = 0; x.ngroups != UINT32_MAX && i < x.ngroups; i++)
        printf("group %u\n", x.groups[i]);
    for (uint32_t i = 0; i < x.njoins; i++)
        printf("join %d\n", x.joins[i]);
    for (uint32_t i = 0; i < x.nfds; i++)
        printf("fd %d %u\n", x.fds[i].from, x.fds[i].to);
    for (uint32_t i = 0; i < x.nlimits; i++)
        printf("rlimit %u %llu %llu\n", x.limits[i].resource, (unsigned long long)x.limits[i].limit.rlim_cur, (unsigned long long)x.limits[i].limit.rlim_max);
    text("cwd", x.cwd);
    for (uint32_t i = 0; i < x.ncandidates; i++)
        text("candidate", x.candidates[i]);
    for (uint32_t i = 0; i < x.argc; i++)
        text("argv", x.argv[i]);
    for (uint32_t i = 0; i < x.envc; i++)
        text("env", x.envp[i]);
    exec_forget(&x);
    return 0;
}

static int show_create(struct reader body, int nfds) {
    static struct create k;
    static struct message m;
    m.body = body;
    m.nfds = nfds;
    for (int i = 0; i < nfds; i++)
        m.fds[i] = i;
    k.cleanup = NULL;
    if (!parse_create(&k, &m)) {
        free(k.cleanup);
        return puts("malformed"), 0;
    }
    printf("clone_flags %llu\nflags %u\nuid %u\ngid %u\ninto_cgroup %d\n", (unsigned long long)k.clone_flags, k.flags, k.uid, k.gid, k.into_cgroup);
    text("uid_map", k.uid_map);
    text("gid_map", k.gid_map);
    for (int i = 0; i < k.njoins; i++)
        printf("join %d %u\n", k.joins[i].fd, k.joins[i].kind);
    for (const char *path = k.cleanup; *path; path += strlen(path) + 1)
        text("cleanup", path);
    hex("groups", k.groups.at, (size_t)(k.groups.end - k.groups.at));
    hex("host_ops", k.host_ops.at, (size_t)(k.host_ops.end - k.host_ops.at));
    hex("init_ops", k.start.init_ops.at, (size_t)(k.start.init_ops.end - k.start.init_ops.at));
    hex("exec", k.start.exec.at, (size_t)(k.start.exec.end - k.start.exec.at));
    free(k.cleanup);
    return 0;
}

// Each operation over stubs that succeed: its result, how many bytes of its body it left unread, and its calls.
static int show_ops(struct reader block) {
    static int slots[SLOTS];
    struct ops o;
    stub_start(&o, slots, SLOTS);
    stub_log = stdout;
    uint32_t count = rd_uint32(&block);
    for (uint32_t i = 0; i < count; i++) {
        uint16_t code = rd_uint16(&block), flags = rd_uint16(&block);
        struct reader body = rd_block(&block);
        if (block.bad || code >= sizeof TABLE / sizeof *TABLE || !TABLE[code])
            return puts("malformed"), 0;
        printf("op %u %u\n", code, flags);
        int result = TABLE[code](&o, &body);
        if (o.parent >= 0)
            stub_close(o.parent); // forget_parent, as ops_run would
        o.parent = -1;
        printf("result %d %d %zu\n", result, (int)body.bad, (size_t)(body.end - body.at));
    }
    printf("left %zu\n", (size_t)(block.end - block.at));
    stub_finish(&o);
    return 0;
}

int main(int argc, char **argv) {
    size_t room = 1 << 20, size = 0, n;
    uint8_t *data = malloc(room);
    while (data && (n = fread(data + size, 1, room - size, stdin)) > 0)
        size += n;
    if (!data || argc < 2)
        return 2;
    int nfds = argc > 2 ? atoi(argv[2]) : 0, result = 2;
    if (nfds >= 0 && nfds <= WIRE_FDS) {
        if (!strcmp(argv[1], "exec"))
            result = show_exec(reader_of(data, size), nfds);
        else if (!strcmp(argv[1], "create"))
            result = show_create(reader_of(data, size), nfds);
        else if (!strcmp(argv[1], "ops"))
            result = show_ops(reader_of(data, size));
    }
    free(data);
    return result;
}
