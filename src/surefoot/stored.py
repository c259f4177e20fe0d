"""What a run's folder says about itself: its recipe, its configuration, and where each value came from."""

from __future__ import annotations

from pathlib import Path

from surefoot import recipes
from surefoot.config.fields import changed
from surefoot.config.files import load_run_config
from surefoot.errors import ConfigError, RunError
from surefoot.track.folder import RunFolder

__all__ = ["Stored", "stored"]


class Stored:
    """What a run's folder says about itself: recipe, configuration, sources."""

    def __init__(self, folder: RunFolder, recipe: recipes.Recipe | None = None) -> None:
        self.folder = folder
        self.recipe = recipe or _recipe_of(folder)
        path = folder.path / "config.yaml"
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            what = f"cannot read config.yaml: {error.strerror}"
            raise RunError(what, where=str(folder.path), fix="restore it from a copy") from error
        config, self.sources, self.pinned, _, self.preset = load_run_config(
            text, self.recipe.config
        )
        self.config = changed(config, folder.meta.get("grown", {}))

    def files(self) -> dict[str, str]:
        """Return the small texts that the recipe left with the run."""
        texts = (p for p in self.folder.path.glob("*.json") if p.name != "run.json")
        return {p.name: p.read_text(encoding="utf-8") for p in texts}


def _recipe_of(folder: RunFolder) -> recipes.Recipe:
    """Return a run's recipe. Raises ConfigError: where to find it, or that nobody has named it."""
    at, copy = folder.recipe_at, folder.path / "recipe.py"
    try:
        return recipes.recall(at, f"the run {folder.name}")
    except ConfigError as error:
        if copy.is_file() and not Path(at).exists():
            fix = f"put it there again; the run keeps a copy: cp {copy} {at}"
        elif at not in recipes.names() and not at.endswith(".py"):
            fix = "its recipe was made in Python and lies in no file; there, the same call goes on"
        else:
            raise
        raise ConfigError(
            f"the recipe of {folder.name} is not to be found: {at}", fix=fix
        ) from error


def stored(folder: RunFolder, recipe: recipes.Recipe | None = None) -> Stored:
    """Read a run's own configuration, of `recipe` where it is at hand already.

    Raises RunError or ConfigError when it cannot be read.
    """
    return Stored(folder, recipe)
