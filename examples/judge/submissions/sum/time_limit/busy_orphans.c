// Grandchildren in sessions of their own, whose parent is gone, each for a moment only: no wait() ever collects their time.
#include <signal.h>
#include <time.h>
#include <unistd.h>

static void generation(void) {
    while ((double)clock() / CLOCKS_PER_SEC < 0.05)
        ;
    if (fork() == 0) {
        setsid();
        generation();
    }
    _exit(0);
}

int main(void) {
    if (fork() == 0)
        generation();
    for (;;)
        pause();
}
