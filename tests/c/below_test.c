// below_test.c: links are put into paths where the kernel follows none, as under fs.protected_symlinks, which is the machine's
// own to set.
#define _GNU_SOURCE
#include "sys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define CHECK(what)                                                                                                              \
    do {                                                                                                                         \
        if (!(what)) {                                                                                                           \
            fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #what, strerror(errno));                             \
            abort();                                                                                                             \
        }                                                                                                                        \
    } while (0)

static int strict_openat2(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    int fd = openat2(dir, path, flags, mode, resolve | X_RESOLVE_NO_SYMLINKS);
    if (fd < 0 && errno == ELOOP)
        errno = EACCES;
    return fd;
}

#define openat2 strict_openat2
#include "below.c"

static int root;

static char content_of(const char *path) {
    char c = 0;
    int fd = open_below(root, path, O_RDONLY, 0, 0);
    if (fd < 0)
        return 0;
    CHECK(read(fd, &c, 1) == 1);
    close(fd);
    return c;
}

static void put(const char *path, const char *text) {
    int fd = openat(root, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && write(fd, text, 1) == 1);
    close(fd);
}

int main(void) {
    static const char *const links[][2] = {
        {"f", "to-f"},
        {"d", "to-d"},
        {"/to-d/../to-f", "long"},
        {"to-d/f", "far"},
        {"../../../f", "out"},
        {"loop", "loop"},
        {"nowhere", "no"},
        {"/", "top"},
        {"../to-f", "d/up"},
        {"/proc/self/fd/0", "magic"},
    };
    char name[] = "/tmp/below-XXXXXX", path[PATH_SPACE + 2], command[64];
    CHECK(mkdtemp(name) && (root = open(name, O_PATH | O_DIRECTORY | O_CLOEXEC)) >= 0 && mkdirat(root, "d", 0700) == 0);
    put("f", "1");
    put("d/f", "2");
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        CHECK(symlinkat(links[i][0], root, links[i][1]) == 0);
    CHECK(content_of("f") == '1' && content_of("/to-f") == '1' && content_of("long") == '1' && content_of("out") == '1');
    CHECK(content_of("to-d/f") == '2' && content_of("//to-d//f") == '2' && content_of("far") == '2' &&
          content_of("top/to-d/../d/f") == '2');
    CHECK(content_of("to-d/up") == '1' && content_of("top/top/to-d/up") == '1');
    CHECK(!content_of("loop") && errno == ELOOP);
    CHECK(!content_of("no") && errno == ENOENT);
    CHECK(!content_of("to-f/x") && errno == ENOTDIR);
    CHECK(!content_of("magic")); // there is no /proc below
    // Who wants no link followed gets none; those before the last name are.
    CHECK(open_below(root, "to-f", O_RDONLY | O_NOFOLLOW, 0, 0) < 0 && errno == EACCES);
    int fd = open_below(root, "to-d/up", O_PATH | O_NOFOLLOW, 0, 0);
    struct stat st;
    CHECK(fd >= 0 && fstat(fd, &st) == 0 && S_ISLNK(st.st_mode) && close(fd) == 0);
    // What would be too long is refused as before.
    memset(path, '/', sizeof path);
    memcpy(path + PATH_SPACE - 6, "to-f", 5);
    CHECK(content_of(path) == '1');
    path[PATH_SPACE - 6] = '/';
    CHECK(symlinkat("a-name-that-is-longer", root, "s") == 0);
    memcpy(path + PATH_SPACE - 3, "s", 2);
    CHECK(!content_of(path));
    snprintf(command, sizeof command, "rm -r %s", name);
    CHECK(system(command) == 0);
    puts("below_test: all passed");
    return 0;
}
