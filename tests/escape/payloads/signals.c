// Kill whatever we can name. argv[1]: the pid namespace of the attacked host; in that one we do nothing but say so.
#include "try.h"

int main(int argc, char **argv) {
    char space[64] = "";
    if (argc < 2 || readlink("/proc/self/ns/pid", space, sizeof space - 1) < 0 || strcmp(space, argv[1]) == 0) {
        puts("kill: ALLOWED, in the host's own pid namespace");
        return 1;
    }
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    kill(getppid(), SIGKILL); kill(1, SIGKILL); kill(1, SIGSTOP); kill(1, SIGTERM); kill(0, SIGTERM); kill(-1, SIGTERM); kill(-1, SIGHUP);
    for (int other = 2; other < 64; other++)
        if (other != getpid())
            kill(other, SIGKILL);
    puts("done: all tried");
    fflush(stdout);
    kill(-1, SIGKILL); kill(0, SIGKILL);
    return 0;
}
