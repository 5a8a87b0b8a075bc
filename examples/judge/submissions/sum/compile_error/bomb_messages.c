// 10^6 warnings from 10 lines.
#define A(x) x x x x x x x x x x
#define B(x) A(A(x))
#define C(x) B(B(x))

int main(void) {
    C(B(_Pragma("GCC warning \"the same again, and again, and again\"")))
    return 0 }
