// judge.h: what a seccomp filter says of a system call that another one has reported.
//
// Theory of operation
// -------------------
// A traceless container has a filter that reports every call which could leave something behind (wire.md, "Traces"). The
// policy proper reports some calls as well: those for which a program is killed. A listener hears of both, so init asks the
// policy's own program, with the registers that came with the report.
//
// The instructions are those that sec/bpf.py writes, and nothing else; whatever is malformed counts as denied.
#ifndef SANDBOX_JUDGE_H
#define SANDBOX_JUDGE_H

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

// One instruction at `*at`, which it moves on; false when it is none that we know. A return is left to the caller.
static inline bool judge_step(const struct sock_filter *in, const struct seccomp_data *data, uint32_t *a, unsigned *at) {
    bool holds;
    switch (in->code) {
    case BPF_LD | BPF_W | BPF_ABS:
        if (in->k % 4 || in->k > sizeof *data - 4)
            return false;
        memcpy(a, (const char *)data + in->k, sizeof *a);
        return true;
    case BPF_ALU | BPF_AND | BPF_K:
        *a &= in->k;
        return true;
    case BPF_JMP | BPF_JA:
        *at += in->k;
        return true;
    case BPF_JMP | BPF_JEQ | BPF_K:
        holds = *a == in->k;
        break;
    case BPF_JMP | BPF_JGE | BPF_K:
        holds = *a >= in->k;
        break;
    case BPF_JMP | BPF_JGT | BPF_K:
        holds = *a > in->k;
        break;
    case BPF_JMP | BPF_JSET | BPF_K:
        holds = *a & in->k;
        break;
    default:
        return false;
    }
    *at += holds ? in->jt : in->jf;
    return true;
}

// What `program` returns for `data`: SECCOMP_RET_* with its data. It only jumps forwards, so it takes `length` steps at most.
static inline uint32_t judge(const struct sock_filter *program, unsigned length, const struct seccomp_data *data) {
    uint32_t a = 0;
    unsigned at = 0;
    for (unsigned steps = 0; at < length && steps < length; steps++) {
        const struct sock_filter *in = &program[at++];
        if (in->code == (BPF_RET | BPF_K))
            return in->k;
        if (!judge_step(in, data, &a, &at))
            break;
    }
    return SECCOMP_RET_KILL_PROCESS;
}

#endif
