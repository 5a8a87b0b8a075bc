# Goes right or down only.
h, w = map(int, input().split())
grid = [input() for _ in range(h)]
steps = {(0, 0): 0}
for r in range(h):
    for c in range(w):
        for before in (r - 1, c), (r, c - 1):
            if grid[r][c] == "." and before in steps:
                steps[r, c] = steps[before] + 1
print(steps.get((h - 1, w - 1), -1))
