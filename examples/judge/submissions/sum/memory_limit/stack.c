static int deeper(int depth) {
    volatile char frame[1 << 16];
    for (int i = 0; i < 1 << 16; i += 4096)
        frame[i] = (char)depth;
    return deeper(depth + 1) + frame[depth & 0xffff];
}

int main(void) { return deeper(0); }
