// What all attacks share: one line for each thing that was tried, `NAME: ANSWER`.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static inline void tell(const char *name, long result) {
    printf("%s: %s\n", name, result >= 0 ? "ALLOWED" : strerror(errno));
    fflush(stdout);
}
// Safe when the kernel said no, for whatever reason.
#define TRY(call) do { errno = 0; long r_ = (long)(call); tell(#call, r_); } while (0)

static inline int is_refusal(int number) {
    return number == EPERM || number == ENOSYS || number == EAFNOSUPPORT || number == EACCES || number == ENOSPC;
}
// Safe when somebody refused to look at the call at all: a complaint about its arguments is the code that was to be out of reach.
#define REACH(call) do { errno = 0; long r_ = (long)(call); int e_ = errno; \
    if (r_ < 0 && !is_refusal(e_)) printf("%s: REACHED, %s\n", #call, strerror(e_)); \
    else { errno = e_; tell(#call, r_); } fflush(stdout); } while (0)
