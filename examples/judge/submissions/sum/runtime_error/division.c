#include <signal.h>
#include <stdio.h>

int main(void) {
    volatile int zero = 0;
    printf("%d\n", 1 / zero);
    raise(SIGFPE); // where the processor does not mind
}
