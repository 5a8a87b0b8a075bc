// The compiler reads until it may not go on.
#include "/dev/random"

int main(void) { return 0; }
