"""What can be learned: one file each. Recipes do not know each other, and importing one is light.

A recipe is a name, a configuration class, presets, and a function that builds the parts of a run.
`surefoot train ./my_recipe.py` takes a file of your own with an attribute `recipe`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from surefoot import trust
from surefoot.config.fields import Given
from surefoot.config.schema import RunConfig
from surefoot.errors import ConfigError, Problem

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.engine.foresee.cards import Place
    from surefoot.engine.foresee.tier import Tier
    from surefoot.engine.job import Job
    from surefoot.engine.kit.speak import Speaker
    from surefoot.engine.world import World

__all__ = ["Adoption", "Recipe", "find", "import_file", "names", "recall"]

_SHIPPED = {
    "charlm": "surefoot.recipes.charlm:recipe",
    "code": "surefoot.recipes.code:recipe",
    "colours": "surefoot.recipes.colours:recipe",
    "gpt": "surefoot.recipes.gpt:recipe",
    "multiply": "surefoot.recipes.multiply:recipe",
}


@dataclass(frozen=True)
class Adoption:
    """What a recipe reads from weights that come without a configuration.

    `tensors` by learner are named as the model names them; `settings` (path -> value) are what
    their shapes decide. `open` settings no shape decides: a person must give them, and reads why;
    of `data.a or data.b` one is enough. `ways` says what to do, where giving it is not all.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    settings: Mapping[str, Any]
    open: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    ways: Mapping[str, str] = field(default_factory=dict)

    def over(
        self, given: Mapping[str, Given], file: str, written: Collection[str] = ()
    ) -> tuple[dict[str, Given], list[Problem]]:
        """Return `given` with what the file tells, and what contradicts it or is still open.

        Settings that are `written` in files of settings are not open.
        """
        told = {
            path: Given(value, f"the shapes in {file}") for path, value in self.settings.items()
        }
        wrong = [
            Problem(f"{path} is {self.settings[path]} in the file, not {mine.value}", mine.where)
            for path, mine in given.items()
            if path in told and mine.value != self.settings[path]
        ]
        for names, why in self.open.items():
            paths = names.split(" or ")
            if not {*given, *written} & {*paths}:
                flags = ["--" + path.rpartition(".")[2].replace("_", "-") for path in paths]
                fix = self.ways.get(names, f"{' or '.join(flags)} says it")
                wrong.append(Problem(f"{names} is not known: {why}", file, fix))
        return {**given, **told}, wrong


@dataclass(frozen=True)
class Recipe:
    """What to learn.

    `build(config, world)` returns the parts of a run; it is called again for every resume and
    must depend on nothing else. `speak(config, files, world)` returns models without data, for
    `surefoot sample`; `files` are the texts that the job left with the run. Both import torch
    inside, so that help stays fast. `adopt(tensors, said)` reads sizes from a file of weights for
    `surefoot adopt`; `said` is what the file holds besides. `depth(config)` is how many equal
    layers the model has, None where they differ, if `model.num_layers` does not say it. `tiers(recipe, config, place)` says for
    `surefoot plan` how long rows may be. Presets are nested values over the
    defaults.
    """

    name: str
    summary: str
    config: type[RunConfig]
    build: Callable[[Any, World], Job]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    default_preset: str | None = None
    speak: Callable[[Any, Mapping[str, str], World], Speaker] | None = None
    adopt: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Adoption] | None = None
    depth: Callable[[Any], int | None] | None = None
    tiers: Callable[[Recipe, Any, Place], Iterator[Tier]] | None = None
    location: str = ""  # the path of a file, to find the recipe again

    @property
    def address(self) -> str:
        """What a person types for it: a name, or the path of a file from here."""
        path, here = Path(self.location), Path.cwd()
        inside = self.location and path.is_relative_to(here)
        return str(path.relative_to(here)) if inside else self.location or self.name


def names() -> dict[str, str]:
    """Return the shipped recipes: name -> module:attribute."""
    return dict(_SHIPPED)


def find(ref: str) -> Recipe:
    """Return the recipe that a person asked for: a name, or a Python file with an attribute `recipe`.

    The file is run, now and whenever a run says that it is its recipe. Raises ConfigError for an
    unknown name, a missing file, or a file without a recipe.
    """
    if ref in _SHIPPED:
        module, _, attribute = _SHIPPED[ref].partition(":")
        found: Recipe = getattr(importlib.import_module(module), attribute)
        return found
    if ref.endswith(".py"):
        if Path(ref).is_file():
            trust.name(Path(ref))
        return _from_file(Path(ref))
    fix = f"recipes: {', '.join(_SHIPPED)}, or a .py file"
    if near := difflib.get_close_matches(ref, _SHIPPED, n=1):
        fix = f"did you mean {near[0]}?"
    elif Path(ref).exists():
        fix = f"a text: surefoot train charlm --path {ref}; numbers: docs/guides/own-model.md"
    raise ConfigError(f"unknown recipe {ref!r}", fix=fix)


def recall(ref: str, by: str) -> Recipe:
    """Return the recipe that a file on disk (`by`) asks for.

    Raises ConfigError as `find` does, and where that would run code that nobody has named here.
    """
    if ref.endswith(".py") and Path(ref).is_file():
        trust.require(Path(ref), by)
    return find(ref)


def import_file(path: Path) -> ModuleType:
    """Run a Python file of the user's and return it as a module. Raises ConfigError."""
    if not path.is_file():
        there = [p.name for p in path.parent.glob(f"*{path.suffix}")]
        near = difflib.get_close_matches(path.name, there, n=1)
        fix = f"did you mean {path.with_name(near[0])}?" if near else "check the path"
        raise ConfigError(f"there is no file {path}", fix=fix)
    name = f"surefoot_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path} does not import: {type(error).__name__}: {error}") from error
    return module


def _from_file(path: Path) -> Recipe:
    module = import_file(path)
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"{path} has no attribute `recipe` of type surefoot.Recipe")
    object.__setattr__(recipe, "location", str(path.resolve()))
    return recipe
