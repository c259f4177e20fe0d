"""`surefoot profile RUN|RECIPE`: where the time and the memory of a step go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot import recipes
from surefoot.cli.options import print_json, settings_from
from surefoot.config import flags
from surefoot.errors import ConfigError, Problem, SurefootError

if TYPE_CHECKING:
    from surefoot.engine.auto.fit import Pins
    from surefoot.engine.foresee.predict import Need
    from surefoot.lab.anatomy import Anatomy

__all__ = ["run"]

_BAR, _SHOWN = 24, 12
_SLOW = 0.1  # share of a step that waiting for data may take before it is advised against


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    own = flags.parser(
        "surefoot profile RUN|RECIPE", "Take a step apart: time, operations, memory, data."
    )
    settings_from(own)
    own.add_argument("--out", type=Path, metavar="FOLDER", help="Also write a trace and pictures.")
    own.add_argument("--runs", metavar="DIR", help="Folder of the runs (or $SUREFOOT_RUNS).")
    own.add_argument("--json", action="store_true", help="Print one JSON document.")
    if not argv or argv[0].startswith("-"):
        if argv and argv[0] in ("-h", "--help"):
            print(own.format_help())
            return 0
        fix = f"recipes: {', '.join(recipes.names())}, or surefoot profile last"
        raise ConfigError([Problem("which recipe or run?", "command line", fix)])
    name = argv[0]
    known = name in recipes.names() or name.endswith(".py")
    recipe = recipes.find(name) if known else None
    options, given, problems = flags.parse(own, argv[1:], recipe.config if recipe else _schema())
    if options.help:
        print(own.format_help())
        return 0
    if recipe is None:
        if given or problems:
            raise ConfigError("a run has its settings already", fix=f"surefoot profile {name}")
        whole = _of_run(name, options.runs)
    else:
        whole = _of_recipe(recipe, options, given, problems)
    title, found, need, pins = whole
    if options.json:
        print_json(_document(title, found, need, pins))
    else:
        for line in _lines(title, found, need, pins):
            print(line)
    if options.out is not None:
        for path in _write(options.out, found, need):
            if not options.json:
                print(f"look   {path}")
    return 0


def _schema() -> Any:
    from surefoot.config.schema import RunConfig

    return RunConfig


def _of_recipe(
    recipe: recipes.Recipe, options: Any, given: Any, problems: Any
) -> tuple[str, Anatomy, Need, Pins]:
    from surefoot import api
    from surefoot.config.fields import changed
    from surefoot.data.fetch import cache_dir
    from surefoot.engine import open_world
    from surefoot.engine.auto.fit import choose
    from surefoot.engine.plan import prepare
    from surefoot.lab.anatomy import dissect

    resolved = api.settle(recipe, options.preset, options.config, given, problems)
    config, world = resolved.config, open_world(resolved.config.machine.device)
    job = recipe.build(config, world)
    prepare(job, config, {})
    steps = config.limit(len(job.source))
    pins, _ = choose(changed(config, job.settings), job, world, steps, cache_dir() / "fit.json")
    title = f"{recipe.name}, {resolved.preset}" if resolved.preset else recipe.name
    need = _played(recipe, config, pins)
    return title, dissect(job, config, world, pins), need, pins


def _of_run(name: str, runs: str | None) -> tuple[str, Anatomy, Need, Pins]:
    """Profile a run from its newest checkpoint on; the run itself stays as it is."""
    from surefoot.api import stored
    from surefoot.engine.rebuild import rebuild
    from surefoot.engine.state import TrainState
    from surefoot.engine.store import Store
    from surefoot.lab.anatomy import dissect
    from surefoot.track.folder import find, runs_dir

    folder = find(runs_dir(runs), name)
    kept = stored(folder)
    job, world, pins, _ = rebuild(kept.recipe, folder, kept.config)
    whole = [
        c
        for c in Store(folder.path / "checkpoints", folder.meta["id"]).checkpoints()
        if c.resumable
    ]
    newest = max(whole, key=lambda c: c.step, default=None)
    if newest is not None:
        TrainState(job.learners).restore(newest.read())
    at = f"step {newest.step}" if newest is not None else "the beginning"
    need = _played(kept.recipe, kept.config, pins)
    return f"{folder.name} at {at}", dissect(job, kept.config, world, pins), need, pins


def _played(recipe: recipes.Recipe, config: Any, pins: Pins) -> Need:
    from surefoot.engine.foresee.cards import find_place
    from surefoot.engine.foresee.outlook import playable
    from surefoot.engine.foresee.predict import predict

    place = find_place("this", None) if pins.device.startswith("cuda") else None
    block, processors = (place.block, place.processors) if place else (1, None)
    return predict(
        recipe, config, playable(pins), micro=pins.micro_batch_size, block=block,
        processors=processors,
    )  # fmt: skip


def _lines(title: str, found: Anatomy, need: Need, pins: Pins) -> Iterator[str]:
    from surefoot.track.text import bytes_text, clock

    pieces = -(-found.examples // pins.micro_batch_size)
    cut = "at once" if pieces == 1 else f"in {pieces} pieces"
    yield f"step   {title}: {found.step:.3g} ms for {found.examples} examples {cut}, {pins.precision} on {pins.device}"
    for name, spent in found.parts.items():
        share = spent / found.step
        yield f"       {name:<14}{spent:>9.3f} ms{share:>7.1%}  {'█' * round(_BAR * share)}".rstrip()
    if pins.compile:
        yield "       (not compiled here; the run compiles)"
    yield ""
    yield f"{'operation':<44}{'calls':>7}{'ms':>10}{'share':>8}"
    whole = sum(spent for _, _, spent in found.operations) or 1.0
    for name, calls, spent in found.operations[:_SHOWN]:
        yield f"  {name[:41]:<42}{calls:>7.1f}{spent:>10.3f}{spent / whole:>8.1%}"
    yield ""
    yield f"memory {bytes_text(need.peak)} of tensors at the peak of a step"
    for name, size in need.parts.items():
        if size:
            share = size / need.peak
            yield f"       {name:<14}{bytes_text(size):>9}{share:>9.1%}  {'█' * round(_BAR * share)}".rstrip()
    yield "       largest tensors then"
    for size, what in need.largest:
        yield f"       {bytes_text(size):>9}  {what.replace('aten.', '').replace('.default', '')}"
    yield ""
    yield from _data(found)
    if found.saving:
        yield f"save   {clock(found.saving) if found.saving > 1 else f'{found.saving * 1e3:.0f} ms'} a checkpoint, beside training"


def _data(found: Anatomy) -> Iterator[str]:
    """Yield the way of the data, and advice where it is too slow."""
    from surefoot.track.text import bytes_text, count

    rows = found.rows
    times = f"addresses {rows.order * 1e3:.3f} ms, examples {rows.make * 1e3:.3f} ms, to the device {rows.move * 1e3:.3f} ms"
    yield f"data   a batch of {bytes_text(rows.nbytes)}: {times}"
    need = found.examples / found.step * 1e3
    yield f"       one thread makes {count(rows.rate)} examples a second, training takes {count(need)}"
    if found.parts["data"] > _SLOW * found.step:
        threads = max(2, -(-int(need * 1.5) // max(1, int(rows.rate))))
        yield f"       -> --prefetch-threads {threads} makes them ahead"


def _document(title: str, found: Anatomy, need: Need, pins: Pins) -> dict[str, Any]:
    rows = found.rows
    return {
        "what": title, "device": pins.device, "precision": pins.precision,
        "micro_batch_size": pins.micro_batch_size, "step_ms": found.step,
        "parts_ms": dict(found.parts),
        "operations": [
            {"name": name, "calls": calls, "ms": spent} for name, calls, spent in found.operations
        ],
        "peak_bytes": need.peak, "memory": dict(need.parts),
        "largest": [{"bytes": size, "what": what} for size, what in need.largest],
        "data": {
            "order_s": rows.order, "make_s": rows.make, "move_s": rows.move,
            "bytes": rows.nbytes, "examples_per_s": rows.rate,
        },
        "save_s": found.saving,
    }  # fmt: skip


def _write(folder: Path, found: Anatomy, need: Need) -> Sequence[Path]:
    """Write the trace and the pictures. Raises SurefootError where that is not possible."""
    from surefoot.engine.foresee.predict import KINDS
    from surefoot.track.plots import DPI, draw_step

    trace, picture = folder / "trace.json.gz", folder / "step.png"
    shares: Mapping[str, float] = found.parts
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found.trace.export_chrome_trace(str(trace))
        draw_step(shares, KINDS, need.history).savefig(picture, dpi=DPI)
    except OSError as error:
        raise SurefootError(f"--out: cannot write into {folder}: {error}") from None
    return trace, picture
