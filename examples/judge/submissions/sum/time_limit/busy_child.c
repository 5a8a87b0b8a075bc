// The parent uses no time: its child does.
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
    if (fork() == 0)
        for (volatile unsigned long i = 0;; i++)
            ;
    wait(NULL);
}
