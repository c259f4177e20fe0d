"""`surefoot checkpoints RUN [prune | fork STEP]` and `surefoot verify RUN`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from surefoot.cli.options import Parser, parser
from surefoot.errors import CheckFailed, ConfigError

if TYPE_CHECKING:
    from surefoot.engine import Store
    from surefoot.track.folder import RunFolder

__all__ = ["run"]


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    return _verify(argv) if verb == "verify" else _checkpoints(argv)


def _parser(verb: str, description: str) -> Parser:
    own = parser(verb, description)
    own.add_argument("run", nargs="?", default="last", help="name, number, prefix or `last`")
    return own


def _open(options: argparse.Namespace) -> tuple[RunFolder, Store]:
    from surefoot.engine import Store
    from surefoot.track.folder import find, runs_dir

    folder = find(runs_dir(options.runs), options.run)
    return folder, Store(folder.path / "checkpoints", folder.meta["id"])


def _verify(argv: list[str]) -> int:
    options = _parser("verify", "Check every checkpoint and the journal.").parse_args(argv)
    from surefoot.engine.verify import verify
    from surefoot.track.folder import find, runs_dir

    folder = find(runs_dir(options.runs), options.run)
    findings = list(verify(folder.path, folder.meta["id"]))
    found = [{"what": f.what, "problem": f.problem} for f in findings]
    broken = [f for f in findings if f.problem]
    if options.json:
        print(json.dumps({"run": folder.name, "sound": not broken, "checked": found}))
    else:
        for entry in found:
            print(f"{entry['what']:<28} {entry['problem'] or 'sound'}")
    if broken:
        aside = "surefoot resume moves damaged checkpoints aside and uses the one before"
        raise CheckFailed(
            f"{len(broken)} of {len(found)} cannot be used",
            where=str(folder.path),
            fix=broken[0].fix or aside,
        )
    return 0


def _checkpoints(argv: list[str]) -> int:
    own = _parser("checkpoints", "List the checkpoints of a run; prune or fork them.")
    own.add_argument("action", nargs="?", choices=["list", "prune", "fork"], default="list")
    own.add_argument("step", nargs="?", help="fork: the step to continue from")
    own.add_argument("--yes", action="store_true", help="prune: really delete")
    own.add_argument("--name", help="fork: name of the new run")
    options = own.parse_args(argv)
    if options.action == "fork":
        return _fork(options)
    if options.action == "prune":
        return _prune(options)
    return _list(options)


def _list(options: argparse.Namespace) -> int:
    from surefoot import api
    from surefoot.engine.retain import pins, reasons
    from surefoot.engine.verify import problem_of

    folder, store = _open(options)
    found = store.checkpoints()
    config = api.stored(folder).config
    why = reasons(found, config.keep, pins(store, config))
    rows: list[dict[str, Any]] = [
        {
            "step": c.step, "bytes": c.size, "metric": c.metric, "problem": problem_of(c),
            "resumable": c.resumable, "kept": why.get(c.sequence, []),
        }
        for c in found
    ]  # fmt: skip
    broken = store.damaged()
    if options.json:
        lost = [{"path": str(path), "problem": error.what} for path, error in broken]
        print(json.dumps([*rows, *lost]))
        return 0
    print(f"{'step':>10} {'size':>10} {'val loss':>9}  {'state':<10} kept because")
    for row in rows:
        metric = "" if row["metric"] is None else f"{row['metric']:.4f}"
        state = row["problem"] or ("whole" if row["resumable"] else "weights")
        reasons_ = ", ".join(row["kept"]) or "(goes with the next save)"
        print(
            f"{row['step']:>10} {row['bytes'] / 1e6:>7.1f} MB {metric:>9}  {state:<10} {reasons_}"
        )
    for path, error in broken:
        print(f"{path.name}: {error.what}; it is not used")
    return 0


def _prune(options: argparse.Namespace) -> int:
    """Delete what retention would not keep, and checkpoints set aside as damaged."""
    import shutil

    from surefoot import api
    from surefoot.engine import retain

    folder, store = _open(options)
    config = api.stored(folder).config
    keep, pins = config.keep, retain.pins(store, config)
    found = store.checkpoints()
    why = retain.reasons(found, keep, pins)
    gone = [c.path for c in found if c.sequence not in why]
    pen = store.folder / "damaged"
    gone += sorted(pen.iterdir()) if pen.is_dir() else []
    size = sum(f.stat().st_size for path in gone for f in path.rglob("*") if f.is_file())
    verb = "deleted" if options.yes else "would delete"
    if options.yes:
        with folder.lock():
            retain.apply(store, keep, pins)
            shutil.rmtree(pen, ignore_errors=True)
    if options.json:
        names = [str(path.relative_to(store.folder)) for path in gone]
        print(json.dumps({"deleted": options.yes, "checkpoints": names, "bytes": size}))
        return 0
    for path in gone:
        print(f"  {path.relative_to(store.folder)}")
    print(f"{verb} {len(gone)} of {len(found)} checkpoints, {size / 1e6:.1f} MB")
    if gone and not options.yes:
        print("nothing was deleted; do it: add --yes")
    return 0


def _fork(options: argparse.Namespace) -> int:
    from surefoot import api

    if options.step is None or not options.step.isdecimal():
        raise ConfigError("fork needs the step of a checkpoint", fix="surefoot checkpoints RUN")
    new = api.fork(options.run, int(options.step), runs=options.runs, name=options.name)
    if options.json:
        print(json.dumps({"run": new.name, "parent": new.meta["parent"]}))
    else:
        from surefoot.track.folder import reference

        again = f"surefoot resume {reference(new.path)}"
        print(f"run {new.name} begins at step {options.step}; go on: {again}")
    return 0
