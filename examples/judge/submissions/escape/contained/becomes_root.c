// Takes on other ids, and tries what only root may.
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

int main(void) {
    int got = 0;
    gid_t none = 0;
    got += setuid(0) == 0;
    got += setresuid(0, 0, 0) == 0;
    got += setgid(0) == 0;
    got += setgroups(1, &none) == 0;
    got += chown("/tmp", 0, 0) == 0;
    got += chroot("/tmp") == 0;
    got += mknod("/tmp/kmsg", S_IFCHR | 0600, makedev(1, 11)) == 0;
    got += open("/usr/bin/env", O_WRONLY) >= 0;
    got += open("/proc/sys/kernel/core_pattern", O_WRONLY) >= 0;
    got += open("/sys/fs/cgroup/cgroup.procs", O_WRONLY) >= 0;
    got += nice(-20) != -1;
    if (got)
        printf("%d rights\n", got);
    else
        puts("nothing");
}
