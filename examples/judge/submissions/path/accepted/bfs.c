#include <stdio.h>

static char grid[100][101];
static int steps[100][100], queue[10000];

int main(void) {
    int h, w;
    scanf("%d %d", &h, &w);
    for (int r = 0; r < h; r++)
        scanf("%100s", grid[r]);
    int head = 0, tail = 0;
    steps[0][0] = 1;
    queue[tail++] = 0;
    while (head < tail) {
        int r = queue[head] / w, c = queue[head] % w;
        head++;
        const int dr[] = {1, -1, 0, 0}, dc[] = {0, 0, 1, -1};
        for (int k = 0; k < 4; k++) {
            int a = r + dr[k], b = c + dc[k];
            if (a < 0 || a >= h || b < 0 || b >= w || grid[a][b] != '.' || steps[a][b])
                continue;
            steps[a][b] = steps[r][c] + 1;
            queue[tail++] = a * w + b;
        }
    }
    printf("%d\n", steps[h - 1][w - 1] - 1);
}
