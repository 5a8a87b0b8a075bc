# Closes its output without a word.
import os

os.close(1)
os._exit(0)
