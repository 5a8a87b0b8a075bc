"""An interactive problem: guess a number between 1 and 1000 in ten questions. Each pair runs in two containers; the interactor judges.

Run it: python examples/interactive.py
"""

from __future__ import annotations

import sys

import sandbox
from sandbox import Container, Interaction, Party, Verdict

PYTHON = "/usr/bin/python3"
INTERACTOR = """
import sys
secret = int(sys.argv[1])
for question in range(10):
    guess = int(input())
    print("right" if guess == secret else "higher" if guess < secret else "lower", flush=True)
    if guess == secret:
        sys.exit(0)
sys.exit("ten wrong guesses")  # exit code 1: rejected
"""
SOLUTIONS = {
    "halving": """
low, high = 1, 1000
while True:
    guess = (low + high) // 2
    print(guess, flush=True)
    answer = input()
    if answer == "right":
        break
    low, high = (guess + 1, high) if answer == "higher" else (low, guess - 1)
""",
    "counting": "for guess in range(1, 1001):\n    print(guess, flush=True)\n    if input() == 'right': break\n",
    "does not flush": "import sys; sys.stdout.write('500\\n'); sys.stdin.readline()",
    "crashes": "print(1 // 0, flush=True)",
    "guessing on": "while True: print(0)",
}
# A solution that is rejected dies of the end of its input, or of SIGPIPE: that is not what counts against it.
EXPECTED = {
    "halving": Verdict.ACCEPTED,
    "counting": Verdict.REJECTED,
    "does not flush": Verdict.SOLUTION_FAILED,
    "crashes": Verdict.SOLUTION_FAILED,
    "guessing on": Verdict.REJECTED,
}


def play(judge: Container, player: Container, solution: str, secret: int) -> Interaction:
    return sandbox.interact(
        Party(judge, [PYTHON, "-c", INTERACTOR, str(secret)]),
        Party(player, [PYTHON, "-c", solution]),
        timeout=1.0,
        transcript="64K",
    )


def main() -> int:
    with Container() as judge, Container() as player:
        games = {name: play(judge, player, solution, 777) for name, solution in SOLUTIONS.items()}
    for name, game in games.items():
        said = sum(len(chunk.data) for chunk in game.transcript or ())
        reason = game.interactor.stderr.decode().strip().splitlines()[-1:] if game.verdict is Verdict.REJECTED else [game.solution.status.value]
        print(f"{name:15}{game.verdict.value:16} {game.solution.wall_time:.3f} s, {said:5} bytes said, {game.first} ended first; {' '.join(reason)}")
    return 0 if {name: game.verdict for name, game in games.items()} == EXPECTED else 1


if __name__ == "__main__":
    sys.exit(main())
