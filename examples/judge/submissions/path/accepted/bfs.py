from collections import deque

h, w = map(int, input().split())
grid = [input() for _ in range(h)]
steps = {(0, 0): 0}
queue = deque(steps)
while queue:
    r, c = queue.popleft()
    for a, b in (r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1):
        if 0 <= a < h and 0 <= b < w and grid[a][b] == "." and (a, b) not in steps:
            steps[a, b] = steps[r, c] + 1
            queue.append((a, b))
print(steps.get((h - 1, w - 1), -1))
