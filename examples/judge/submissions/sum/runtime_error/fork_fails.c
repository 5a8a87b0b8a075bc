// Starts children until it may not.
#include <stdio.h>
#include <unistd.h>

int main(void) {
    for (int i = 0; i < 10000; i++) {
        pid_t pid = fork();
        if (pid == 0)
            for (;;)
                pause();
        if (pid < 0) {
            perror("fork");
            return 1;
        }
    }
    puts("-2");
}
