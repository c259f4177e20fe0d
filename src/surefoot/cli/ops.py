"""`surefoot ops`: operations, their ways, how fast they are here; `surefoot ops check`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot import trust
from surefoot.cli.options import Parser, print_json, read
from surefoot.config.suggest import nearest
from surefoot.errors import CheckFailed, ConfigError

if TYPE_CHECKING:
    import torch

    from surefoot.ops import Op
    from surefoot.ops.check import Finding, Speed

__all__ = ["run"]


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    checking = argv[:1] == ["check"]
    own = Parser(
        prog="surefoot ops check" if checking else "surefoot ops",
        description="Hold every way of an operation against its reference, values and gradients."
        if checking
        else "Operations, the ways there are to compute them, and how fast they are here. "
        "`surefoot ops check` holds every way against its reference.",
    )
    own.add_argument("--json", action="store_true", help="print one JSON document")
    own.add_argument("name", nargs="*", help="operations, or Python files with ways of your own")
    own.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    own.add_argument("--slow", action="store_true", help="also ways that are compiled for seconds")
    if checking:
        own.add_argument("--shapes", type=int, default=8, metavar="N", help="random shapes (8)")
    else:
        own.add_argument(
            "--max-slowdown", type=read("share"), metavar="5%",
            help="fail where a standard way is slower than its reference by more",
        )  # fmt: skip
        own.add_argument("--dtype", default="fp32", choices=("fp64", "fp32", "bf16", "fp16"))
    options = own.parse_args(argv[1:] if checking else argv)
    from surefoot.engine import open_world

    device, ops = open_world(options.device).device, _ops(options.name)
    if checking:
        return _check(ops, device, options.shapes, options.slow, options.json)
    return _list(ops, device, options)


def _ops(words: Sequence[str]) -> list[Op]:
    """Return the operations of `words`, with the ways that files among them add."""
    from surefoot.engine.own import is_file, operations_of
    from surefoot.ops import OPS

    found: dict[str, Op] = {}
    for word in words:
        if is_file(word):
            trust.name(Path(word))
            found |= operations_of(word)
        elif word in OPS:
            found[word] = OPS[word]
        else:
            near = nearest(word, OPS)
            fix = f"did you mean {near}?" if near else f"there are {', '.join(OPS)}"
            raise ConfigError(f"unknown operation {word}", fix=fix)
    return list((found or OPS).values())


def _list(ops: Sequence[Op], device: torch.device, options: Namespace) -> int:
    from surefoot.ops.check import race, slow

    facts, wrong, dtype, limit = [], [], options.dtype, options.max_slowdown
    for place, (op, speeds) in enumerate(race(ops, device, dtype, options.slow)):
        if limit is not None and (text := slow(op, speeds, limit)) is not None:
            wrong.append(text)
        if options.json:
            facts += [_facts(op, name, device, speeds) for name in op.ways]
            continue
        between = "\n" if place else ""
        print(between + "\n".join(_lines(op, device, dtype, speeds)), flush=True)
    if options.json:
        print_json(facts)
    else:
        print(
            f"\nms on {device}, {dtype}, forward and backward, 1 call of a usual size; * standard"
        )
        print("next   surefoot ops check    surefoot train charlm --norm fused")
    if wrong:
        raise CheckFailed("slower than allowed: " + "; ".join(wrong))
    return 0


def _facts(op: Op, name: str, device: torch.device, speeds: Any) -> dict[str, Any]:
    way, speed = op.ways[name], speeds.get(name)
    return {
        "op": op.name, "way": name, "standard": name == op.standard, "tolerance": way.tolerance,
        "why_not": way.why_not(device), "devices": list(way.devices),
        "seconds": speed and speed.seconds, "of_reference": speed and speed.ratio,
    }  # fmt: skip


def _lines(op: Op, device: torch.device, dtype: str, speeds: Any) -> Iterator[str]:
    width = _width(op)
    yield f"{op.name:<{width + 3}} {'tolerance':>9} {'ms':>9} {'of reference':>14}"
    for name, way in op.ways.items():
        mark = "*" if name == op.standard else " "
        tolerance = f"{way.tolerance:.0e}" if way.tolerance else "-"
        cells = f"{tolerance:>9} {_speed(op, name, device, speeds, dtype)}"
        yield f"  {_short(name):<{width}}{mark} {cells}"


def _speed(op: Op, name: str, device: torch.device, speeds: Any, dtype: str) -> str:
    why = op.ways[name].why_not(device)
    if why is not None:
        return f"  not here: {why}"
    speed: Speed | None = speeds.get(name)
    if speed is None:
        slow = op.ways[name].slow_start
        return "  not measured: --slow compiles it" if slow else f"  not for {dtype}"
    return f"{speed.seconds * 1e3:>9.3f} {speed.ratio:>14.2f}"


def _short(name: str) -> str:
    return name.rpartition("/")[2].partition("#")[0]


def _width(op: Op) -> int:
    return max(12, *(len(_short(name)) for name in op.ways))


def _check(ops: Sequence[Op], device: torch.device, shapes: int, slow: bool, as_json: bool) -> int:
    from surefoot.ops.check import check

    if shapes < 1:
        raise ConfigError(f"--shapes {shapes}: expected 1 or more")
    found: list[Finding] = []
    for place, op in enumerate(ops):
        if not as_json:
            print(f"\n{op.name}" if place else op.name)
        for name, way in op.ways.items():
            why = way.why_not(device)
            if name == "reference" or (way.slow_start and not slow):
                continue
            mine = [] if why else check(op, name, device, shapes)
            found += mine
            if not as_json:
                said = _verdicts(mine) if why is None else f"not here: {why}"
                print(f"  {_short(name):<{_width(op) + 1}} {said}")
    bad = [f for f in found if not f.fine]
    if as_json:
        print_json([{**vars(f), "fine": f.fine} for f in found])
    else:
        print(
            f"\nworst error of {shapes} random shapes on {device}, relative to the largest number"
        )
    if bad:
        first = bad[0]
        raise CheckFailed(
            f"{first.op} {_short(first.way)} is off by {first.error:.1e} in {first.dtype}, "
            f"at most {first.limit:.1e} is allowed",
            where=first.where,
            fix=f"{len(bad)} of {len(found)} comparisons failed" if len(bad) > 1 else None,
        )
    return 0


def _verdicts(found: Sequence[Finding]) -> str:
    return "  ".join(f"{f.dtype} {f.error:.0e} {'ok' if f.fine else 'OFF'}" for f in found)
