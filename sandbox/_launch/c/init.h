// init.h: PID 1 of a container.
#ifndef SANDBOX_INIT_H
#define SANDBOX_INIT_H

#include "ops.h"

struct init_start {
    int channel;       // the first channel to the caller
    int go;            // the launcher says here that the id maps stand, and hands over the slots that it filled
    uint32_t flags;    // CREATE_*
    uint32_t uid, gid; // ids to take on once the maps stand (UINT32_MAX: stay)
    struct ops ops;
    struct reader init_ops, exec;
};

// Never returns: sets the container up, serves its channels, and ends with the first of them.
_Noreturn void init_main(struct init_start *start);

#endif
