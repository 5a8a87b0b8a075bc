// Memory that belongs to no process, and that only pages of a file show.
#include <sys/mman.h>
#include <unistd.h>

int main(void) {
    static char block[1 << 20];
    int fd = memfd_create("hidden", 0);
    for (int i = 0; i < 256; i++)
        if (write(fd, block, sizeof block) < 0)
            return 1;
}
