"""`python -m tests.pretended train charlm --device cuda ...`: the command, on a pretended card."""

import sys

from tests.pretended import card

from surefoot.cli import main
from surefoot.engine.auto import ceilings
from surefoot.recipes import charlm, gpt

__all__: list[str] = []

# How fast a card is at most is measured with products that take a processor half a minute, and every
# operation of a sample goes through Python.
ceilings._GPU_SIDE, ceilings._GPU_STREAM = 256, 2**16
charlm.SAMPLE_TOKENS = gpt.SAMPLE_TOKENS = 12
assert card.HELD.now == 0
if __name__ == "__main__":
    sys.exit(main())
