// fuzz_exec.c: a libFuzzer target for exec_parse. Input: u8 number of descriptors, then a body of EXEC.
#include "exec.h"

#include <stdlib.h>
#include <string.h>

static void read_all(const struct exec_request *x, int nfds) {
    volatile size_t sum = 0;
    for (uint32_t i = 0; i < x->argc; i++)
        sum += strlen(x->argv[i]);
    for (uint32_t i = 0; i < x->envc; i++)
        sum += strlen(x->envp[i]);
    for (uint32_t i = 0; i < x->ncandidates; i++)
        sum += strlen(x->candidates[i]);
    sum += strlen(x->cwd);
    (void)sum;
    if (x->argv[x->argc] || x->envp[x->envc] || x->nfds > MAX_FD_MAP || x->njoins > MAX_JOINS || x->nlimits > MAX_RLIMITS)
        abort();
    for (uint32_t i = 0; i < x->nfds; i++)
        if ((x->fds[i].from != FROM_NULL && (x->fds[i].from < 1000 || x->fds[i].from >= 1000 + nfds)) || x->fds[i].to > MAX_FD_TARGET)
            abort();
    for (uint32_t i = 0; i < x->njoins; i++)
        if (x->joins[i] < 1000 || x->joins[i] >= 1000 + nfds)
            abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct exec_request x;
    int fds[WIRE_FDS];
    if (size < 1)
        return 0;
    int nfds = data[0] % (WIRE_FDS + 1);
    for (int i = 0; i < nfds; i++)
        fds[i] = 1000 + i;
    uint8_t *copy = malloc(size);
    memcpy(copy, data + 1, size - 1);
    if (exec_parse(&x, reader_of(copy, size - 1), fds, nfds)) {
        read_all(&x, nfds);
        exec_forget(&x);
    } else if (x.mapped)
        abort(); // a refused request leaves nothing
    free(copy);
    return 0;
}
