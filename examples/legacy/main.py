"""`python examples/legacy/main.py --d-model 64 ...`: the flags of old, read by today's command."""

import sys

from surefoot.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "multiply", *sys.argv[1:]]))
