"""How far the gradients of a compiled model are from those of the model itself, and what rounding does.

python benchmarks/compiled_gradient.py charlm --preset tiny --precision bf16

Trains a few steps with these words of `surefoot train`, and before the first, the second and each that
$AT names compares all parameters: how far apart the worst is, and how far another precision moves that
one; the largest quotient of the two; seconds of a pass, compiled and not; most bytes of each. A run looks
before its first step only; where a parameter is all zeros then, small numbers stand in for it.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from pathlib import Path

from surefoot.cli import main
from surefoot.engine.conduct import Conductor
from surefoot.engine.learner import Learner
from surefoot.engine.loop import Report
from surefoot.engine.watch import compiled
from surefoot.engine.watch.compiled import Compiled

AT = {0, 1, *(int(step) for step in os.environ.get("AT", "").split(",") if step)}
OFF = ("track.report", "track.tensorboard")
ZERO = ("validate-every", "sample-every")
WORDS = ["--compile", "on", "--new", "--test", "--quiet"]
WORDS += [word for name in OFF for word in (f"--{name}", "no")]
WORDS += [word for name in ZERO for word in (f"--{name}", "0")]


def _peak(begin: bool = False) -> float:
    """Return the most MB since it was told to begin; Linux alone counts them."""
    if begin:
        Path("/proc/self/clear_refs").write_text("5")
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM")) / 1e3


def seen(self: Compiled, name: str, learner: Learner) -> str:
    """Print how far apart they are, in place of judging it."""
    if learner.step not in AT:
        return ""
    with compiled._aside(learner):
        self._gradient(name, learner, 0)  # compiles
        _peak(begin=True)
        begun = time.process_time()
        mine, _ = self._gradient(name, learner, 0)
        spent, most = [time.process_time() - begun], [_peak()]
        with learner.uncompiled():
            self._gradient(name, learner, 0, copies=False)
            _peak(begin=True)
            begun = time.process_time()
            plain, drawn = self._gradient(name, learner, 0, copies=False)
            spent, most = [*spent, time.process_time() - begun], [*most, _peak()]
            with compiled._other_precision(learner):
                other, _ = self._gradient(name, learner, 0)
        found, rounding = self._apart(learner, mine, plain), self._apart(learner, other, plain)
    whole = math.hypot(*(norms[1] for norms in found))
    rows = zip(map(compiled._share, found), map(compiled._share, rounding), found, learner.names)
    share, moved, norms, worst = max(rows)
    quotient = max(a[2] / b[2] for a, b in zip(found, rounding, strict=True) if b[2])
    print(
        f"{name} step {learner.step}, {learner.precision}, {len(found)} tensors, "
        f"{sum(not any(n) for n in found)} without any{', random numbers drawn' * drawn}: "
        f"{worst} {share:.1e} apart ({moved:.1e} by another precision; {norms[1] / whole:.0e} of all), "
        f"quotient at most {quotient:.2g}; "
        f"{spent[0]:.3f} s compiled, {spent[1]:.3f} s not; {most[0]:.0f} MB, {most[1]:.0f} MB",
        flush=True,
    )
    return ""


def again(self: Conductor, report: Report) -> bool:
    """Look after every step as a run does before its first."""
    Compiled(self.config, self.world, self.state, self.record, self.data, self.memory).look()
    return after(self, report)


if __name__ == "__main__":
    after, Conductor._after = Conductor._after, again  # type: ignore[method-assign]
    Compiled._unknown = seen  # type: ignore[method-assign]
    steps = [] if "--max-steps" in sys.argv else ["--max-steps", str(max(AT) + 1)]
    with tempfile.TemporaryDirectory() as runs:
        sys.exit(main(["train", *sys.argv[1:], *WORDS, *steps, "--runs", runs]))
