// classic.h: the attributes of mounts on kernels before mount_setattr(2), Linux 5.12.
#ifndef SANDBOX_CLASSIC_H
#define SANDBOX_CLASSIC_H

#include <stdbool.h>
#include <stdint.h>

// Gives the mount in `fd`, which must be attached, MOUNT_ATTR_RDONLY to MOUNT_ATTR_NOEXEC as in `set`, beside those that it has,
// and `propagation` (MS_PRIVATE, say; 0: as it is). `recursive`: and all that is mounted below it. Needs a procfs at /proc.
// Returns 0, or -1 with errno set.
int classic_set_attr(int fd, uint64_t set, uint64_t propagation, bool recursive);

#endif
