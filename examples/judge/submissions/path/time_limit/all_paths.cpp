// Right, if one could wait: tries every path.
#include <iostream>
#include <string>
#include <vector>

static int h, w, best = -1;
static std::vector<std::string> grid;

static void walk(int r, int c, int steps) {
    if (r < 0 || r >= h || c < 0 || c >= w || grid[r][c] != '.')
        return;
    if (r == h - 1 && c == w - 1) {
        if (best < 0 || steps < best)
            best = steps;
        return;
    }
    grid[r][c] = '#';
    walk(r + 1, c, steps + 1);
    walk(r, c + 1, steps + 1);
    walk(r - 1, c, steps + 1);
    walk(r, c - 1, steps + 1);
    grid[r][c] = '.';
}

int main() {
    std::cin >> h >> w;
    grid.resize(h);
    for (auto &row : grid)
        std::cin >> row;
    walk(0, 0, 0);
    std::cout << best << '\n';
}
