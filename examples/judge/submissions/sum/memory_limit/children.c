// No process alone is above the limit: eight of 12 MiB are.
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
    for (int i = 0; i < 8; i++)
        if (fork() == 0) {
            char *p = malloc(12 << 20);
            if (p)
                memset(p, 1, 12 << 20);
            asm volatile("" : : "r"(p) : "memory");
            for (;;)
                pause();
        }
    wait(NULL);
}
