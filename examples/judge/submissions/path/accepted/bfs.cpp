#include <iostream>
#include <queue>
#include <string>
#include <vector>

int main() {
    int h, w;
    std::cin >> h >> w;
    std::vector<std::string> grid(h);
    for (auto &row : grid)
        std::cin >> row;
    std::vector<std::vector<int>> steps(h, std::vector<int>(w, -1));
    std::queue<std::pair<int, int>> queue;
    steps[0][0] = 0;
    queue.push({0, 0});
    while (!queue.empty()) {
        auto [r, c] = queue.front();
        queue.pop();
        for (auto [dr, dc] : {std::pair{1, 0}, {-1, 0}, {0, 1}, {0, -1}}) {
            int a = r + dr, b = c + dc;
            if (a < 0 || a >= h || b < 0 || b >= w || grid[a][b] != '.' || steps[a][b] >= 0)
                continue;
            steps[a][b] = steps[r][c] + 1;
            queue.push({a, b});
        }
    }
    std::cout << steps[h - 1][w - 1] << '\n';
}
