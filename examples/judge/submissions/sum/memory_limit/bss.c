static volatile char table[1 << 28];

int main(void) {
    for (long i = 0; i < 1 << 28; i += 4096)
        table[i] = 1;
}
