// Judge each path of argv[2..]: "masked", or with argv[1] = "closed", not to be opened for writing. Nothing is ever written.
#include "try.h"

static void masked(const char *path) {
    struct stat status;
    struct statfs fs;
    char byte;
    errno = 0;
    if (stat(path, &status) < 0) {
        printf("%s: %s\n", path, strerror(errno));
    } else if (S_ISDIR(status.st_mode)) {
        DIR *directory = opendir(path);
        int entries = 0;
        while (directory && readdir(directory))
            entries++;
        // TMPFS_MAGIC: linux/magic.h. Whoever is not let in sees nothing either.
        int is_tmpfs = statfs(path, &fs) == 0 && fs.f_type == 0x01021994;
        printf("%s: %s\n", path, directory == 0 ? "closed" : entries <= 2 && is_tmpfs && (fs.f_flags & 1) ? "empty and read-only" : "ALLOWED");
    } else if (S_ISCHR(status.st_mode)) {
        printf("%s: %s\n", path, status.st_rdev == makedev(1, 3) ? "null" : "ALLOWED, another device");
    } else {
        int fd = open(path, O_RDONLY | O_NONBLOCK);
        printf("%s: %s\n", path, fd >= 0 && read(fd, &byte, 1) == 1 ? "ALLOWED" : "nothing to read");
    }
}

int main(int argc, char **argv) {
    for (int i = 2; i < argc; i++)
        if (strcmp(argv[1], "masked") == 0) {
            masked(argv[i]);
        } else {
            errno = 0;
            tell(argv[i], open(argv[i], O_WRONLY | O_NONBLOCK));
        }
    return 0;
}
