"""`surefoot bench`: how fast this machine trains and writes, and others beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from surefoot import recipes
from surefoot.cli.options import parser, print_json
from surefoot.errors import CheckFailed, ConfigError, SurefootError

__all__ = ["run"]

_USUAL = ("charlm", "multiply", "colours", "gpt")
_BOUND = 1.05


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    own = parser("bench", "How fast this machine trains and writes, with everything on auto.")
    own.add_argument("recipe", nargs="*", help=f"default: {', '.join(_USUAL)}")
    own.add_argument("--preset", help="tiny, laptop, ... (each recipe's default)")
    own.add_argument("--seconds", type=float, default=3.0, help="of training for each (3)")
    own.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    own.add_argument(
        "--against", nargs="+", default=[], metavar="PEER",
        help="also train one GPT-2 with: torch, hf, lightning, litgpt, nanogpt ($NANOGPT is a checkout)",
    )  # fmt: skip
    options = own.parse_args(argv)
    if not 0 < options.seconds < float("inf"):  # nor nan
        raise ConfigError(f"--seconds {options.seconds:g}: expected more than 0", fix="--seconds 3")
    from surefoot.cli.peers import check_peers, race
    from surefoot.engine import open_world
    from surefoot.lab.bench import lagging

    check_peers(options.against)
    _check_preset([recipes.find(name) for name in options.recipe or _USUAL], options.preset)
    world = open_world(options.device)
    found = _heading(world.device)
    if not options.json:
        for line in _head(found):
            print(line, flush=True)
    found["recipes"] = rows = []
    for name in options.recipe or _USUAL:
        rows.append(_one(name, options.preset, world, options.seconds))
        if not options.json:
            print(_line(rows[-1]), flush=True)
    found["operations"] = slow = dict(lagging(world.device))
    found["peers"] = race(options.against, world.device, options.seconds) if options.against else []
    if options.json:
        print_json(found)
    else:
        for line in (*_operations(slow), *_peers(found["peers"])):
            print(line)
    behind = [
        f"{name} takes {ratio:.2f} of its reference"
        for name, ratio in slow.items()
        if ratio > _BOUND
    ]
    if behind:
        raise CheckFailed("standard ways slower than their reference: " + "; ".join(behind))
    return 0


def _check_preset(found: Sequence[recipes.Recipe], preset: str | None) -> None:
    """Raise ConfigError for a preset that none of the recipes has."""
    there = list(dict.fromkeys(name for recipe in found for name in recipe.presets))
    if preset is not None and preset not in there:
        raise ConfigError(f"unknown preset {preset}", fix=f"there are {', '.join(there)}")


def _heading(device: Any) -> dict[str, Any]:
    """Return what numbers of two machines are compared with: device, versions, day."""
    from datetime import date

    import torch

    from surefoot.engine.auto.known import device_name
    from surefoot.track.machine import describe_machine
    from surefoot.version import __version__

    machine = describe_machine()
    return {
        "surefoot": __version__, "torch": torch.__version__, "python": machine["python"],
        "device": device_name(device), "cores": machine["cores"], "os": machine["os"],
        "date": date.today().isoformat(),
    }  # fmt: skip


def _head(found: dict[str, Any]) -> Iterator[str]:
    yield f"on     {found['device']}, {found['cores']} cores, {found['os']}"
    yield (
        f"with   surefoot {found['surefoot']}, torch {found['torch']}, Python {found['python']}, "
        f"{found['date']}"
    )
    yield ""
    yield (
        f"{'recipe':<22}{'size':>7}{'ms a step':>11}{'units/s':>9}{'ex/s':>8}{'MFU':>6}"
        f"{'written/s':>11}{'memory':>9}  how"
    )


def _one(name: str, preset: str | None, world: Any, seconds: float) -> dict[str, Any]:
    """Return the speed of one recipe, or why there is none."""
    from dataclasses import asdict

    from surefoot import api
    from surefoot.data.fetch import cache_dir
    from surefoot.lab.bench import speed_of

    recipe = recipes.find(name)
    try:
        resolved = api.settle(recipe, preset, [], {})
        speed = speed_of(recipe, resolved.config, world, seconds, cache_dir() / "fit.json")
    except SurefootError as error:
        why = error.problems[0].what if isinstance(error, ConfigError) else error.what
        return {"recipe": name, "preset": preset, "why_not": why}
    command = f"surefoot train {name}" + (f" --preset {resolved.preset}" if resolved.preset else "")
    return {"recipe": name, "preset": resolved.preset, "command": command, **asdict(speed)}


def _line(row: dict[str, Any]) -> str:
    from surefoot.track.text import bytes_text, count

    label = f"{row['recipe']} {row['preset'] or ''}".strip()
    if "why_not" in row:
        return f"{label:<22} not here: {row['why_not']}"
    share = f"{row['share']:.0%}" if row["share"] else "-"
    written = count(row["written"]) if row["written"] else "-"
    pins = row["pins"]
    how = f"{pins['precision']}, {pins['micro_batch_size']} at once" + (
        ", compiled" if pins["compile"] else ""
    )
    return (
        f"{label:<22}{count(row['parameters']):>7}{row['step'] * 1e3:>11.2f}{count(row['units']):>9}"
        f"{count(row['examples']):>8}{share:>6}{written:>11}{bytes_text(row['nbytes']):>9}  {how}"
    )


def _operations(found: dict[str, float]) -> Iterator[str]:
    yield ""
    words = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found.items())
    yield f"operations, of their reference: {words}"


def _peers(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    from surefoot.track.text import count

    if not found:
        return
    first = found[0]
    yield ""
    yield f"{first['what']}"
    ours = first.get("step")
    for row in found:
        if "why_not" in row:
            yield f"  {row['side']:<34} skipped: {row['why_not']}"
            continue
        times = f"x {row['step'] / ours:.2f}" if ours else ""
        yield f"  {row['side']:<34}{row['step'] * 1e3:>9.2f} ms a step{count(row['tokens']):>9} tok/s  {times}"
