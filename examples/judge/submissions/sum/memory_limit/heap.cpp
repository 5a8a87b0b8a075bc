#include <string>
#include <vector>

int main() {
    std::vector<std::string> all;
    for (;;)
        all.emplace_back(1 << 20, 'x');
}
