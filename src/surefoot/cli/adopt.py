"""`surefoot adopt FILE --recipe NAME`, `surefoot import FOLDER`: weights become a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from surefoot import recipes
from surefoot.cli.options import settings_from
from surefoot.config import flags
from surefoot.errors import ConfigError

__all__ = ["run"]


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    own = _parser(verb)
    from surefoot.config.schema import RunConfig

    options, _, _ = flags.parse(own, argv, RunConfig)
    if options.help:
        print(own.format_help())
        return 0
    if options.file is None or options.recipe is None:
        able = [name for name in recipes.names() if recipes.find(name).adopt is not None]
        what = "which file?" if options.file is None else "for which recipe?"
        example = (
            "import FOLDER" if verb == "import" else f"adopt FILE --recipe {' or '.join(able)}"
        )
        raise ConfigError(what, fix=f"surefoot {example}")
    return _adopt(own, argv, Path(options.file), recipes.find(options.recipe))


def _parser(verb: str) -> argparse.ArgumentParser:
    if verb == "import":
        own = flags.parser(
            "surefoot import FOLDER", "Make a run of a Llama or Qwen3 that transformers saved."
        )
        own.add_argument("file", nargs="?", help="Folder with config.json and *.safetensors.")
        own.add_argument("--recipe", metavar="NAME", default="gpt", help="What goes on (gpt).")
    else:
        own = flags.parser(
            "surefoot adopt FILE --recipe NAME",
            "Make a run of weights without a configuration: sizes are read from the shapes.",
        )
        own.add_argument("file", nargs="?", help="safetensors, or a state dict of torch (.pt).")
        own.add_argument("--recipe", metavar="NAME", help="What the weights are for.")
    settings_from(own, "Take what shapes do not tell from here.")
    own.add_argument("--name", help="Name of the run.")
    own.add_argument("--runs", metavar="DIR", help="Folder of the runs (or $SUREFOOT_RUNS).")
    own.add_argument("--json", action="store_true", help="Print the result as JSON, and only that.")
    return own


def _adopt(
    own: argparse.ArgumentParser, argv: list[str], file: Path, recipe: recipes.Recipe
) -> int:
    options, given, problems = flags.parse(own, argv, recipe.config)
    from surefoot import api
    from surefoot.track.folder import runs_dir

    folder, found = api.adopt(
        file, recipe, given, runs=runs_dir(options.runs), preset=options.preset,
        config=options.config, name=options.name, problems=problems,
    )  # fmt: skip
    if options.json:
        told = {"settings": dict(found.settings), "notes": list(found.notes)}
        print(json.dumps({"run": folder.name, **told}))
        return 0
    count = sum(t.numel() for group in found.tensors.values() for t in group.values())
    tensors = sum(map(len, found.tensors.values()))
    print(f"read   {file}: {tensors} tensors, {count / 1e6:.2f} M numbers")
    for path, value in found.settings.items():
        print(f"       {path} = {value}")
    for note in found.notes:
        print(f"note   {note}")
    print(f"run    {folder.name} begins at step 0 with these weights")
    print(f"next   surefoot resume {folder.name}    surefoot sample {folder.name}")
    return 0
