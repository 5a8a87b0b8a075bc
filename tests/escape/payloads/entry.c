// The same calls by the 32-bit and the x32 entry, each in a child, as the answer may be its death.
#include "try.h"

#ifdef __x86_64__
static long by_int80(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
    return result;
}

static long by_x32(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number | 0x40000000L), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

static void attempt(const char *way, long (*enter)(long, long, long, long), const char *name, long number, long a, long b, long c) {
    pid_t child = fork();
    if (child == 0) {
        long result = enter(number, a, b, c);
        _exit(result >= 0 ? 0 : is_refusal(-result) ? 1 : 2);
    }
    int status = 0;
    waitpid(child, &status, 0);
    const char *answer = WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : WEXITSTATUS(status) == 0 ? "ALLOWED" : WEXITSTATUS(status) == 1 ? "refused" : "REACHED";
    printf("%s by %s: %s\n", name, way, answer);
    fflush(stdout);
}
#endif

int main(void) {
#ifdef __x86_64__
    // The numbers of arch/x86/entry/syscalls/syscall_32.tbl.
    attempt("int 0x80", by_int80, "keyctl", 288, 0, -3, 0);
    attempt("int 0x80", by_int80, "bpf", 357, 0, 0, 0);
    attempt("int 0x80", by_int80, "io_uring_setup", 425, 4, 0, 0);
    attempt("int 0x80", by_int80, "userfaultfd", 374, 0, 0, 0);
    attempt("int 0x80", by_int80, "perf_event_open", 336, 0, 0, -1);
    attempt("int 0x80", by_int80, "unshare", 310, CLONE_NEWUSER, 0, 0);
    attempt("int 0x80", by_int80, "socket(AF_ALG)", 359, AF_ALG, SOCK_SEQPACKET, 0);
    attempt("int 0x80", by_int80, "socket(AF_VSOCK)", 359, AF_VSOCK, SOCK_STREAM, 0);
    uint32_t *args = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    args[0] = AF_ALG, args[1] = SOCK_SEQPACKET, args[2] = 0;
    attempt("int 0x80", by_int80, "socketcall(AF_ALG)", 102, 1, (long)args, 0);
    attempt("x32", by_x32, "keyctl", SYS_keyctl, 0, -3, 0);
    attempt("x32", by_x32, "unshare", SYS_unshare, CLONE_NEWUSER, 0, 0);
    attempt("x32", by_x32, "bpf", SYS_bpf, 0, 0, 0);
#endif
    puts("done: all tried");
    return 0;
}
