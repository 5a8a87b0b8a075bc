// The CPU time of all threads counts.
#include <thread>
#include <vector>

static void spin() {
    for (volatile unsigned long i = 0;; i = i + 1)
        ;
}

int main() {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++)
        threads.emplace_back(spin);
    for (auto &thread : threads)
        thread.join();
}
