// fuzz_ops.c: a libFuzzer target for ops_run, over stubs. Input: u32 seed of the failures, then a block of operations.
#include "stubs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int slots[SLOTS];
    struct ops o;
    if (size < sizeof stub_seed)
        return 0;
    memcpy(&stub_seed, data, sizeof stub_seed);
    // A copy of its own length: ASan sees a read past the end.
    size -= sizeof stub_seed;
    uint8_t *copy = malloc(size ? size : 1);
    memcpy(copy, data + sizeof stub_seed, size);
    stub_start(&o, slots, 32);
    o.setup = stub_seed % 2;
    ops_run(&o, reader_of(copy, size));
    CHECK(o.nskipped <= MAX_SKIPPED);
    stub_finish(&o);
    free(copy);
    return 0;
}
