// exec.h: one program, from a request to its execve.
#ifndef SANDBOX_EXEC_H
#define SANDBOX_EXEC_H

#include "wire.h"

#include <sys/resource.h>

enum {
    MAX_FD_MAP = 240,
    MAX_RLIMITS = 16,
    MAX_JOINS = 16,
    MAX_GROUPS = 64,
    MAX_CANDIDATES = 64,
    MAX_POINTERS = 2048,
    MAX_FD_TARGET = 1 << 20,
    FROM_NULL = -2 // in place of a descriptor: the container's own /dev/null
};

// Where in exec_run a program failed to start: the words are made in Python (wire.md).
enum {
    STEP_CLONE = 1,
    STEP_CGROUP = 2,
    STEP_MARK = 3,
    STEP_TTY = 4,
    STEP_FDS = 5,
    STEP_RLIMIT = 6,
    STEP_CWD = 7,
    STEP_IDS = 8,
    STEP_EXECVE = 9,
    STEP_REQUEST = 10,
    STEP_BUSY = 11,
};

struct exec_request {
    uint32_t flags, uid, gid, ngroups, umask, nlimits, ncandidates, nfds, njoins, argc, envc;
    uint32_t groups[MAX_GROUPS];
    const char *cwd;
    uint64_t wall_ns, cpu_ns;
    uint32_t cpus_milli;
    int cpu_fd;
    uint8_t cpu_format;
    int joins[MAX_JOINS], into_cgroup;
    struct {
        int from;
        uint32_t to;
    } fds[MAX_FD_MAP];
    struct {
        uint32_t resource;
        struct rlimit limit;
    } limits[MAX_RLIMITS];
    uint16_t rows, columns;
    const char *candidates[MAX_CANDIDATES];
    char **argv, **envp; // in `pointers`, or in memory of their own when there are many
    char *pointers[MAX_POINTERS];
    void *mapped;
    size_t mapped_size;

    // For the child and back, over shared memory.
    int tty;           // the terminal's other end, or -1
    bool in_root;      // the caller is in the container's "/"
    int proc;          // the container's procfs, to read the mark from; or -1
    bool alone;        // nothing else runs in the container
    bool mark;         // give it a cgroup namespace of its own, so that its processes can be told from others'
    int mark_sock;     // where the child hands that namespace's descriptor over: as long as it is open, its inode is no other's
    uint64_t mark_ino; // and this is its inode
    uint64_t ready;    // when all was done but execve, in nanoseconds of CLOCK_MONOTONIC
    int step, error;   // where it failed, or 0
};

// Reads a request whose descriptors are numbers in fds[nfds]. False when it is malformed.
bool exec_parse(struct exec_request *x, struct reader r, const int *fds, int nfds);
void exec_forget(struct exec_request *x); // unmaps what exec_parse mapped
// Notes the CPUs that exec_spawn gives its children, with EXEC_SAME_CPU, and the ids that need not be set; before that, it knows
// none.
void exec_note_self(void);
// In the calling process: becomes the program; returns only when that failed, with step and error set.
void exec_become(struct exec_request *x);
// In a child with vfork semantics. Returns its pid, or -1 with step and error set (the child is reaped).
int exec_spawn(struct exec_request *x);

// Takes a lock back that the last program has left on init's /dev/null: all containers have the host's node.
void exec_unlock_null(void);

#endif
