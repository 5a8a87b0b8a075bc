// The payload of the benchmarks: the least that a program can do. It has no C library, so that neither a loader nor a
// start-up routine hides what it costs to start it: gcc -O2 -static -nostdlib.
_Noreturn void _start(void) {
#if defined __x86_64__
    __asm__ volatile("syscall" : : "a"(60L), "D"(0L) : "rcx", "r11", "memory"); // exit(0)
#elif defined __aarch64__
    register long number __asm__("x8") = 93; // exit
    register long code __asm__("x0") = 0;
    __asm__ volatile("svc 0" : : "r"(number), "r"(code) : "memory");
#else
#error "write exit(0) for this processor"
#endif
    __builtin_unreachable();
}
