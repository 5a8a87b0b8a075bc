// A program of 4 GiB.
char huge[1UL << 32] = {1};

int main(void) { return huge[0]; }
