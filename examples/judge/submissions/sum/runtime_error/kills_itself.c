// The signal that an out-of-memory kill and a deadline use too: it must not be taken for either.
#include <signal.h>

int main(void) { raise(SIGKILL); }
