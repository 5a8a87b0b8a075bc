// fuzz_create.c: a libFuzzer target for the launcher's reading of CREATE. Input: u8 number of descriptors, then the body.
#define main launcher_main
#include "launcher.c"
#undef main
#include "exec.h"

static void read_all(const struct create *k, int nfds) {
    volatile size_t sum = strlen(k->uid_map) + strlen(k->gid_map);
    for (const char *path = k->cleanup; *path; path += strlen(path) + 1)
        if (path[0] != '/' || strstr(path, ".."))
            abort();
    for (int i = 0; i < k->njoins; i++)
        if (k->joins[i].fd < 1000 || k->joins[i].fd >= 1000 + nfds)
            abort();
    if (k->into_cgroup >= 1000 + nfds)
        abort();
    const struct reader *blocks[] = {&k->groups, &k->host_ops, &k->start.init_ops, &k->start.exec};
    for (int i = 0; i < 4; i++)
        for (const uint8_t *at = blocks[i]->at; at < blocks[i]->end; at++)
            sum += *at;
    struct step s;
    for (struct reader steps = k->groups; steps.at != steps.end && parse_step(&s, &steps);) {
        if (s.path[0] != '/' || strstr(s.path, "..") || s.what > GROUP_OWN)
            abort();
        sum += strlen(s.path) + strlen(s.value);
    }
    (void)sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct create k;
    static struct exec_request x;
    static struct message m;
    if (size < 1)
        return 0;
    m.nfds = data[0] % (WIRE_FDS + 1);
    for (int i = 0; i < m.nfds; i++)
        m.fds[i] = 1000 + i;
    uint8_t *copy = malloc(size);
    memcpy(copy, data + 1, size - 1);
    m.body = reader_of(copy, size - 1);
    k.cleanup = NULL;
    if (parse_create(&k, &m)) {
        read_all(&k, m.nfds);
        if (exec_parse(&x, k.start.exec, k.slots, SLOTS))
            exec_forget(&x);
    }
    free(k.cleanup);
    free(copy);
    return 0;
}
