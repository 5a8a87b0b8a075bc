// Sums in a float.
#include <iostream>

int main() {
    int n;
    float sum = 0, x;
    std::cin >> n;
    while (std::cin >> x)
        sum += x;
    std::cout << sum << '\n';
}
