"""What the command line can do, as functions: train, resume, debug, fork.

Nothing here reads `sys.argv`. Importing this module is light; torch comes with the first call.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from surefoot import recipes, trust
from surefoot.config import flags as flag_words
from surefoot.config import identity
from surefoot.config.explain import shown
from surefoot.config.fields import Given, leaves
from surefoot.config.resolve import Resolved, amend, resolve, written
from surefoot.config.schema import RunConfig
from surefoot.errors import ConfigError, DataError, Problem, RunError
from surefoot.sinks import Console, Opener, Sinks
from surefoot.stored import Stored, stored
from surefoot.track.folder import RunFolder, find, list_runs, reference, runs_dir
from surefoot.track.meta import check_tags

if TYPE_CHECKING:
    from surefoot.engine import Result
    from surefoot.lab.debug import Replay

__all__ = [
    "Console",
    "Stored",
    "adopt",
    "again",
    "branch",
    "debug",
    "fork",
    "resume",
    "settle",
    "start",
    "stored",
    "train",
    "unfinished",
]


def train(
    recipe: str | recipes.Recipe,
    *,
    preset: str | None = None,
    config: Path | str | Sequence[Path | str] = (),
    runs: Path | str | None = None,
    name: str | None = None,
    new: bool = False,
    quiet: bool = False,
    stream: TextIO | None = None,
    **settings: Any,
) -> Result:
    """Train `recipe`, or go on with the newest unfinished run of the same settings.

    Settings are keyword arguments: `d_model=192` where the name is unique, else
    `**{"model.d_model": 192}`. `config` names files; `new` starts another run in any case;
    `name` names it. Returns how the run ended; raises SurefootError.

        surefoot.train("charlm", d_model=192, max_steps=500).metrics
    """
    found = recipes.find(recipe) if isinstance(recipe, str) else recipe
    given, problems = flag_words.arguments(settings, found.config, found.address)
    files = [config] if isinstance(config, str | Path) else list(config)
    resolved = settle(found, preset, files, given, problems)
    return start(found, resolved, runs_dir(runs), name, new, None if quiet else Console(stream))


def settle(
    recipe: recipes.Recipe,
    preset: str | None,
    files: Sequence[Path | str],
    given: Mapping[str, Given],
    problems: Sequence[Problem] = (),
) -> Resolved:
    """Merge defaults, preset, files and flags. Raises ConfigError with all mistakes at once."""
    resolved = resolve(
        recipe.name, recipe.config, recipe.presets, preset, files, given,
        default_preset=recipe.default_preset, problems=problems,
    )  # fmt: skip
    return _named(resolved, given)


def _named(resolved: Resolved, given: Mapping[str, Given]) -> Resolved:
    """Note which files of code a person has typed among the settings; return `resolved`."""
    for path, value in given.items():
        if value.typed:
            trust.name_code(path, value.value)
    return resolved


def start(
    recipe: recipes.Recipe,
    resolved: Resolved,
    runs: Path,
    name: str | None,
    new: bool,
    console: Console | None,
    *,
    test: bool = False,
    parent: tuple[RunFolder, str | int] | None = None,
    facts: Mapping[str, Any] | None = None,
    sinks: Sequence[Opener] = (),
) -> Result:
    """Begin a run of `resolved`, or go on with an unfinished one of the same identity.

    `facts` go into a new run's `run.json`; `sinks` open what shows the run besides the usual.
    """
    from surefoot.data.fetch import cache_dir
    from surefoot.engine import begin, first_rank

    check_tags(resolved.config.track.tags)
    earlier = first_rank(
        lambda again: None if new and not again else unfinished(runs, recipe, resolved.config, name)
    )
    if earlier is not None:
        notes = [*resolved.notes, f"{earlier.name} is unfinished"]
        return go_on(earlier, resolved, console, notes, sinks, recipe)
    return _learned(begin(
        recipe, resolved.config, runs=runs, name=name, preset=resolved.preset,
        sources=resolved.sources, cache=cache_dir() / "fit.json",
        open_sinks=Sinks(resolved.config, console, resolved.notes, sinks),
        facts={**(facts or {}), **({"test": "--test"} if test else {})}, parent=parent,
        tell=None if console is None else console.say,
    ))  # fmt: skip


def _learned(result: Result) -> Result:
    """Remember for this device what the run took beside what was foreseen; tests teach nothing."""
    from surefoot.data.fetch import cache_dir
    from surefoot.engine.foresee.past import learn

    meta = RunFolder.open(result.folder).meta
    plan, taken = meta.get("plan", {}), meta.get("taken", {})
    if meta.get("test"):
        return result
    learn(cache_dir() / "past.json", meta["pinned"]["device"], plan, taken)
    return result


def unfinished(
    runs: Path, recipe: recipes.Recipe, config: RunConfig, name: str | None
) -> RunFolder | None:
    """Return the newest unfinished run of this identity that nobody trains, or of this `name`.

    Raises RunError when `name` is taken by a run with other settings, or by a finished one.
    """
    wanted, code = identity.fingerprint(config), recipe.location or recipe.name
    for folder in reversed(list_runs(runs)):
        same = folder.meta.get("identity") == wanted and folder.recipe_at == code
        if name is not None and folder.name == name:
            if not same:
                raise _taken(folder, config, code)
            if folder.status == "done":
                fix = "another --name, or surefoot resume with a higher --max-steps"
                raise RunError(f"run {name} is already done", where=str(folder.path), fix=fix)
            return folder
        if name is None and same and folder.status in ("stopped", "failed", "lost"):
            return folder
    return None


def _taken(folder: RunFolder, config: RunConfig, code: str) -> RunError:
    if folder.recipe_at != code:
        what = f"run {folder.name} is of another recipe: {folder.recipe_at}, and not {code}"
        return RunError(what, where=str(folder.path), fix="another --name")
    try:
        found = identity.diff(stored(folder).config, config)
        diff = [f"  {field}: {old} there, {new} here" for field, old, new in found]
    except (RunError, ConfigError):
        diff = []
    what = "\n".join([f"run {folder.name} has other settings", *diff])
    return RunError(what, where=str(folder.path), fix="another --name, or the same settings")


def resume(
    run: str | Path = "last",
    *,
    runs: Path | str | None = None,
    quiet: bool = False,
    stream: TextIO | None = None,
    strict: bool = False,
    fork: bool = False,
    name: str | None = None,
    **settings: Any,
) -> Result:
    """Go on with a run, proving each step that is computed again; see `train` for `settings`.

    Only circumstances may change (how often to log, `max_steps`); anything else raises RunError
    with the difference, or with `fork` goes on as a new run, called `name`, that remembers its
    parent. Model sizes given by mistake are named and ignored unless `strict`.
    """
    folder = find(runs_dir(runs), str(run))
    kept = stored(folder)
    given, problems = flag_words.arguments(settings, kept.recipe.config, kept.recipe.address)
    console = None if quiet else Console(stream)
    if fork:
        return branch(kept, given, problems, console, runs_dir(runs), name)
    return again(kept, given, problems, console, strict)


def again(
    kept: Stored,
    given: Mapping[str, Given],
    problems: Sequence[Problem],
    console: Console | None,
    strict: bool = False,
) -> Result:
    """Go on with `kept` under changed circumstances."""
    given, notes = _keep_sizes(kept, given, strict)
    wanted = _named(amend(kept.config, kept.sources, given, problems), given)
    return go_on(kept.folder, wanted, console, [*wanted.notes, *notes])


def branch(
    kept: Stored,
    given: Mapping[str, Given],
    problems: Sequence[Problem],
    console: Console | None,
    runs: Path,
    name: str | None,
) -> Result:
    """Begin a new run with other settings from the newest checkpoint of `kept`."""
    wanted = _named(amend(kept.config, kept.sources, given, problems), given)
    config = _with_horizon(kept, wanted.config)
    notes = [*wanted.notes, *_spent(kept.folder, config)]
    resolved = replace(wanted, config=config, preset=kept.preset, notes=notes)
    return start(kept.recipe, resolved, runs, name, True, console, parent=(kept.folder, "last"))


def _keep_sizes(
    kept: Stored, given: Mapping[str, Given], strict: bool
) -> tuple[dict[str, Given], list[str]]:
    """Drop model sizes from `given`: the checkpoint's count; say so."""
    if strict:
        return dict(given), []
    kept_, told = {}, []
    for path, wanted in given.items():
        value = wanted.value
        if path.startswith("model."):
            told.append(f"{path} {identity.identity(kept.config)[path]} and not {value}")
        elif isinstance(value, dict):  # settings of one learner
            sizes = [p for p in value if p.startswith("model.")]
            told += [f"{path}.{p} and not {value[p]}" for p in sizes]
            rest = {p: v for p, v in value.items() if p not in sizes}
            kept_[path] = replace(wanted, value=rest)
        else:
            kept_[path] = wanted
    text = f"model sizes are the checkpoint's: {'; '.join(told)} (--strict refuses)"
    return kept_, [text] if told else []


def go_on(
    folder: RunFolder,
    wanted: Resolved,
    console: Console | None,
    notes: Sequence[str],
    sinks: Sequence[Opener] = (),
    recipe: recipes.Recipe | None = None,
) -> Result:
    """Resume `folder` under the circumstances of `wanted`; refuse another identity."""
    from surefoot.engine import every_rank, seen_by_all
    from surefoot.engine import resume as engine_resume

    seen_by_all(folder.path)
    kept = every_rank(lambda: stored(folder, recipe))
    config = _with_horizon(kept, wanted.config)
    was = _with_horizon(kept, kept.config)
    grown = identity.growth(was, config)
    diff = [d for d in identity.diff(was, config) if d[0] not in grown]
    if diff:
        lines = [f"  {field}: {old} in the run, {new} asked for" for field, old, new in diff]
        raise RunError(
            "\n".join(["these settings change the numbers and cannot change on a resume:", *lines]),
            where=str(folder.path),
            fix="as a new run from these weights: "
            + _forked(folder, [*diff, *identity.changes(was, config)], type(config)),
        )
    saved = any((folder.path / "checkpoints").glob("step-*"))  # what is not is computed again
    if folder.status == "done" and saved and not grown and _reached(folder, config):
        what = f"run {folder.name} is done at step {folder.meta.get('step')}"
        raise RunError(what, where=str(folder.path), fix="a higher --max-steps goes on")
    notes = [*notes, *_spent(folder, config)]
    return _learned(engine_resume(
        kept.recipe, folder, config, notes=notes, grown=grown,
        open_sinks=Sinks(config, console, (), sinks),
    ))  # fmt: skip


def _forked(
    folder: RunFolder, wanted: Sequence[tuple[str, Any, Any]], schema: type[RunConfig]
) -> str:
    """Return the command that forks a run with settings as `wanted`: (path, before, now)."""
    words = ["surefoot resume", reference(folder.path), "--fork"]
    for path, _, value in wanted:
        if path not in leaves(schema) or isinstance(value, dict):  # settings of one learner
            return " ".join([*words, "..."])
        words += [flag_words.spelling(path, schema), shlex.quote(shown(value))]
    return " ".join(words)


def _spent(folder: RunFolder, config: RunConfig) -> list[str]:
    """Say that steps are asked for whose learning rate is 0, and how to have others."""
    from surefoot.engine.plan import schedule_for

    end, limit = config.schedule.decay_steps or config.schedule.horizon, config.limit()
    if end is None or limit is None or limit <= end or schedule_for(config, end)(limit - 1) > 0:
        return []
    again = f"surefoot resume {reference(folder.path)} --fork --max-steps {limit}"
    return [
        f"the schedule ends at step {end}: the learning rate is 0 from there on, and nothing is learned",
        f"to plan it anew over {limit} steps: {again} --schedule.horizon {limit}",
    ]


def _with_horizon(kept: Stored, config: RunConfig) -> RunConfig:
    """Hold the schedule's planned length, so that max_steps may be raised."""
    horizon = kept.folder.meta.get("pinned", {}).get("horizon")
    if horizon is None or config.schedule.horizon is not None:
        return config
    schedule = config.schedule.model_copy(update={"horizon": horizon})
    return config.model_copy(update={"schedule": schedule})


def _reached(folder: RunFolder, config: RunConfig) -> bool:
    limit = config.limit() if config.train.epochs is None else folder.meta.get("max_steps")
    return limit is not None and int(folder.meta.get("step") or 0) >= limit


def debug(run: str | Path, step: int, *, runs: Path | str | None = None) -> Replay:
    """Compute one step of a run again, from the nearest checkpoint, and return what is inside it.

    Activations, gradients and updates by layer, the examples with their losses, and where a
    value that is not finite arises. Changes nothing of the run. Raises RunError.
    """
    from surefoot.lab.debug import replay

    kept = stored(find(runs_dir(runs), str(run)))
    return replay(kept.recipe, kept.folder, kept.config, step)


def fork(
    run: str | Path, step: int, *, runs: Path | str | None = None, name: str | None = None
) -> RunFolder:
    """Start a new run from an older checkpoint of `run`; `resume` goes on with it."""
    from surefoot.engine.fork import fork as engine_fork

    folder = find(runs_dir(runs), str(run))
    files = {"config.yaml": (folder.path / "config.yaml").read_text(encoding="utf-8")}
    return engine_fork(folder, step, runs_dir(runs), files | stored(folder).files(), name)


def adopt(
    file: str | Path,
    recipe: recipes.Recipe,
    given: Mapping[str, Given],
    *,
    runs: Path,
    preset: str | None = None,
    config: Sequence[Path | str] = (),
    name: str | None = None,
    problems: Sequence[Problem] = (),
) -> tuple[RunFolder, recipes.Adoption]:
    """Make a run of weights without a configuration; return it, and what the file told.

    `file` may be a folder of a Llama or Qwen3 as `transformers` saves it, with its tokenizer.
    Sizes come from the shapes of the tensors, everything else from `given`, files and preset.
    Raises ConfigError where a setting that no shape tells is not given, or contradicts one;
    DataError where the file cannot be read, or a tensor does not fit.
    """
    from surefoot.data.fetch import cache_dir
    from surefoot.engine import adopt as engine_adopt
    from surefoot.engine.adopt import read_folder, read_weights

    if recipe.adopt is None:
        fix = "a recipe adopts weights when it has `adopt`: docs/guides/add-a-recipe.md"
        raise ConfigError(f"recipe {recipe.name} cannot read sizes from weights", fix=fix)
    try:
        read = read_folder if Path(file).is_dir() else read_weights
        found = recipe.adopt(*read(Path(file)))
    except DataError as error:
        error.where = error.where or str(file)
        raise
    mine, wrong = found.over(given, str(file), written(config, recipe.config))
    resolved = settle(recipe, preset, config, mine, [*problems, *wrong])
    folder = engine_adopt(
        recipe, resolved.config, found.tensors, file=str(file), runs=runs, name=name,
        preset=resolved.preset, sources=resolved.sources, cache=cache_dir() / "fit.json",
    )  # fmt: skip
    return folder, found
