"""The page of gpt_quality.py from the rows it printed: for runs that a budget or a fault cut off.

    python benchmarks/gpt_quality_rows.py FILE [FILE ...] --command WORDS --machine WORDS --date DATE
        [--clock JSON] [--note TEXT]

A row is `label | seed n | tokens | loss | bits | s`, as gpt_quality.py prints it, or a JSON object of
the same fields; other lines are left out. --clock is a gpt_quality.json whose milliseconds of a step
are used. Nothing is typed: what is missing (seeds, choices) is found by comparing with what
gpt_quality.py would have run. Writes benchmarks/results/gpt_quality.md and gpt_quality.json.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

import gpt_quality as quality

ROW = re.compile(r"^(.+) \| seed (\d+) \| ([\d.]+) M \| ([\d.]+) \| ([\d.]+) \| (\d+) s$")
FIELDS = {"label", "seed", "share", "loss", "bits", "seconds", "tokens"}
STEPS = 500


def outcome(line: str) -> quality.Outcome | None:
    """Return what a printed line says, or None for a line that is no row."""
    if line.startswith("{"):
        fields = json.loads(line)
        return quality.Outcome(**fields) if set(fields) == FIELDS else None
    match = ROW.match(line.strip())
    if match is None:
        return None
    label, seed, millions, loss, bits, seconds = match.groups()
    share = share_of(label)
    tokens = max(8, round(STEPS * share)) * quality.BATCH * quality.CONTEXT
    if abs(tokens / 1e6 - float(millions)) > 0.006:
        raise SystemExit(
            f"{label}: {millions} M tokens were printed, {tokens / 1e6:.2f} M expected"
        )
    return quality.Outcome(
        label, int(seed), share, float(loss), float(bits), float(seconds), tokens
    )


def share_of(label: str) -> float:
    """Return the share of the tokens that runs of this label take."""
    if label.startswith("default x "):
        return float(label.rpartition(" ")[2])
    return quality.HALF if label in quality.CHOICES else 1.0


def lacking(found: Iterable[quality.Outcome], seeds: int = 3) -> list[str]:
    """Return sentences about the runs that gpt_quality.py would have made and that are not here."""
    had = {(x.label, x.seed) for x in found}
    runs = [*quality.goal_runs(seeds), *quality.choice_runs(seeds, {})]
    wanted: dict[str, list[int]] = {}
    for run in runs:
        wanted.setdefault(run.label, []).append(run.seed)
    count = {label: sum((label, s) in had for s in numbers) for label, numbers in wanted.items()}
    none = [label for label, n in count.items() if n == 0]
    some = [label for label, n in count.items() if 0 < n < len(wanted[label])]
    told = []
    if some:
        told.append(f"Fewer than {seeds} seeds: {'; '.join(f'{x} ({count[x]})' for x in some)}.")
    if none:
        told.append(f"Not run: {'; '.join(none)}.")
    return told


def main() -> None:
    """Read the rows and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--command", required=True, help="what printed the rows")
    parser.add_argument("--machine", required=True)
    parser.add_argument("--date", required=True)
    parser.add_argument("--clock", type=Path, help="a gpt_quality.json with ms of a step")
    parser.add_argument("--note", nargs="+", default=[], help="paragraphs below the table")
    parser.add_argument("--out", type=Path, help="another folder for the results")
    asked = parser.parse_args()
    rows = [outcome(line) for path in asked.files for line in path.read_text().splitlines()]
    order = [run.label for run in [*quality.goal_runs(3), *quality.choice_runs(3, {})]]
    found = sorted((x for x in rows if x is not None), key=lambda x: (order.index(x.label), x.seed))
    times = json.loads(asked.clock.read_text())["clock"] if asked.clock else {}
    if times:
        times |= dict.fromkeys(quality.SAME, statistics.median(times[n] for n in quality.SAME))
    about = (quality.__doc__ or "").split("\n\n", 2)[2].rpartition(" Writes")[0]
    page = ["# What each choice of gpt is worth", ""]
    page += [f"`{asked.command}` on {asked.date}: {asked.machine}.", "", about, ""]
    page += [*quality.table(found, times), "", *(f"{x}\n" for x in [*lacking(found), *asked.note])]
    text = "\n".join([*page, *quality.judge(found, times)]) + "\n"
    out = asked.out or Path(__file__).resolve().parent / "results"
    (out / "gpt_quality.md").write_text(text, encoding="utf-8")
    kept = {"clock": times, "runs": [vars(x) for x in found]}
    (out / "gpt_quality.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
