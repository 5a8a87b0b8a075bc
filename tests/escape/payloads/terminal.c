// Put a byte into the input queue of the terminal that we were given. All spellings of the commands.
#include "try.h"

int main(void) {
    char byte = 'x';
    TRY(ioctl(0, 0x5412, &byte));                        // TIOCSTI
    TRY(syscall(SYS_ioctl, 0, 0x100005412UL, &byte));    // the kernel takes the low word only
    TRY(syscall(SYS_ioctl, 0, 0xdead00005412UL, &byte));
    char paste[2] = {3, 0};
    TRY(ioctl(0, 0x541C, paste));                        // TIOCLINUX, paste the selection
    TRY(syscall(SYS_ioctl, 0, 0x10000541cUL, paste));
    return 0;
}
