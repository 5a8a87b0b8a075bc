// Never gives up: contained by the limit on processes, ended by that on time.
#include <unistd.h>

int main(void) {
    for (;;)
        fork();
}
