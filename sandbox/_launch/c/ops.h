// ops.h: the plan's operations, carried out one by one.
#ifndef SANDBOX_OPS_H
#define SANDBOX_OPS_H

#include "wire.h"

enum { ROLE_ROOT = 1, ROLE_PROC = 2, ROLE_PTS = 3, ROLE_LAST_PID = 4, ROLE_UPPER = 5, ROLE_UNSEALED = 6, ROLES = 7 };
enum { MAX_SKIPPED = 32 };
static const uint32_t TOKEN_HIGH = 0x7C3A95D1, TOKEN_LOW = 0xE26B4F08; // sec/traces.py
// Directories that init keeps, as slots of requests.
enum { SLOT_ROLE_BASE = 0xFF00 };

struct skipped {
    uint32_t index;
    int32_t error;
};

struct ops {
    int *slots;                       // SLOTS descriptors, -1 where empty
    int userns;                       // host phase: the container's user namespace, for id-mapped mounts; else -1
    int roles[ROLES];                 // what OP_SETHOOK kept
    int notify;                       // the seccomp listener, or -1
    const struct sock_filter *policy; // of a traceless container: what it asks of a call that was reported; else NULL
    unsigned npolicy;
    uint32_t index;  // the operation under way, or the one that failed: counted from the first of all blocks
    uint32_t before; // how many operations earlier blocks had
    struct skipped skipped[MAX_SKIPPED];
    uint32_t nskipped;
    bool in_root;          // the working directory is the container's "/"
    bool setup;            // nothing but init lives in the container yet
    int parent, parent_of; // the directory opened last by open_parent, and below which; -1: none
    char parent_path[256];
};

// Carries a block of operations (u32 count, then each one) out. Returns 0, or -1 with errno and `index` set.
int ops_run(struct ops *o, struct reader block);

// Brings the loopback of the current network namespace up, by ioctl.
int loopback_up(void);

#endif
