// The right answer, and an exit code that says otherwise.
#include <stdio.h>

int main(void) {
    puts("-2");
    return 3;
}
