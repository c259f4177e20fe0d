"""`surefoot lr-find RECIPE`: which learning rate."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from surefoot import recipes
from surefoot.cli.options import settings_from
from surefoot.config import flags
from surefoot.errors import ConfigError, Problem, SurefootError

__all__ = ["run"]

_MEANING = {
    "steepest": "where the loss falls fastest",
    "valley": "the middle of its longest fall",
    "minimum/10": "a tenth of where it is lowest",
    "slide": "the largest that still falls half as fast",
}


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    own = flags.parser(
        "surefoot lr-find RECIPE", "Try ever larger learning rates; suggest four, change nothing."
    )
    settings_from(own)
    own.add_argument("--from", dest="low", type=float, help="First rate; default: optim.lr / 1000.")
    own.add_argument("--to", dest="high", type=float, help="Last rate; default: optim.lr x 100.")
    own.add_argument("--trial-steps", type=int, default=100, metavar="N", help="Steps (100).")
    own.add_argument("--learner", metavar="NAME", help="Which, where a recipe has several.")
    own.add_argument("--picture", metavar="FILE", help="Draw losses by rate into this PNG file.")
    own.add_argument("--json", action="store_true", help="Print one JSON document, and only that.")
    if not argv or argv[0].startswith("-"):
        if argv and argv[0] in ("-h", "--help"):
            print(own.format_help())
            return 0
        raise ConfigError([Problem("which recipe?", "command line", "surefoot lr-find charlm")])
    recipe = recipes.find(argv[0])
    options, given, problems = flags.parse(own, argv[1:], recipe.config)
    if options.help:
        print(own.format_help())
        return 0
    from surefoot import api

    config = api.settle(recipe, options.preset, options.config, given, problems).config
    low = config.optim.lr / 1000 if options.low is None else options.low
    high = config.optim.lr * 100 if options.high is None else options.high
    if not 0 < low < high < float("inf") or options.trial_steps < 20:
        what = f"rates from {low:g} to {high:g} in {options.trial_steps} steps"
        raise ConfigError(what, fix="0 < --from < --to, and at least 20 --trial-steps")
    from surefoot.engine import open_world
    from surefoot.lab.lr_find import try_rates

    world = open_world(config.machine.device)
    found = try_rates(
        config, recipe.build(config, world), world, low=low, high=high,
        count=options.trial_steps, learner=options.learner,
    )  # fmt: skip
    if options.picture:
        _draw(Path(options.picture), found.rates, found.losses, found.smooth, found.suggestions)
    if options.json:
        print(json.dumps({"recipe": recipe.name, **asdict(found)}))
        return 0
    print(
        f"{len(found.rates)} steps of {recipe.name}, rates from {low:.2g} to {found.rates[-1]:.2g}"
    )
    for name, rate in found.suggestions.items():
        flag = f"--lr {rate:g}"
        flag += "" if found.muon is None else f" --muon-lr {rate * found.muon:.2g}"
        print(f"  {name:<11} {flag:<31} {_MEANING[name]}")
    print(f"the weights are those of before (checksum {found.checksum & (1 << 64) - 1:016x})")
    if options.picture:
        print(f"look   {options.picture}")
    return 0


def _draw(
    path: Path,
    rates: list[float],
    losses: list[float],
    smooth: list[float],
    suggestions: dict[str, float],
) -> None:
    from surefoot.track.plots import DPI, draw_rates

    try:
        draw_rates(rates, losses, smooth, suggestions).savefig(path, dpi=DPI, format="png")
    except OSError as error:
        raise SurefootError(f"--picture: cannot write {path}: {error.strerror}") from None
