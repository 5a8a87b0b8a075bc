// Say which descriptors we were born with, and what they are.
#include "try.h"

int main(void) {
    char target[4096];
    DIR *own = opendir("/proc/self/fd");
    for (struct dirent *entry; own && (entry = readdir(own));) {
        ssize_t length = readlinkat(dirfd(own), entry->d_name, target, sizeof target - 1);
        if (length < 0 || atoi(entry->d_name) == dirfd(own))
            continue;
        target[length] = 0;
        printf("%s: %s\n", entry->d_name, target);
    }
    return 0;
}
