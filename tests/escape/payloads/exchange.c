// Exchange argv[1] and argv[2] without end, so that who looks at a name twice sees two things.
#include "try.h"

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    for (unsigned long rounds = 0;; rounds++) {
        if (syscall(SYS_renameat2, AT_FDCWD, argv[1], AT_FDCWD, argv[2], 2 /* RENAME_EXCHANGE */) < 0 && rounds == 0) {
            perror("renameat2");
            return 1;
        }
        if (rounds == 0) {
            puts("exchanging");
            fflush(stdout);
        }
    }
}
