"""Learn to sort short lists of digits: a recipe in one file, outside the package.

    surefoot train examples/sort_lists.py
    surefoot sample last --prompt "593017>" --tokens 6

A line is `593017>013579`: the digits, a mark, the digits in order. The model is asked for what
comes after the mark. Lists are numbered by a keyed permutation; the first nine tenths train, the
rest is held out, so that no list is in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from surefoot import Batch, GPTConfig, Recipe, RunConfig, Section, circumstance, derive, knob

if TYPE_CHECKING:
    from torch import nn

    from surefoot import Job, Loss, World
    from surefoot.engine import Speaker

ALPHABET = "0123456789>"  # a digit is its own token, the mark is token 10
MARK, IGNORED = 10, -100


class Lists(Section):
    """Which lists there are."""

    length: int = knob(6, "Digits in a list.", ge=2, le=9)
    val_ratio: float = knob(0.1, "Share of all lists that is held out.", gt=0, lt=0.9)
    val_lists: int = circumstance(2000, "Held-out lists that are evaluated.", ge=1)


class SortConfig(RunConfig):
    """Settings of this recipe: those of every run, and two sections of its own."""

    model: GPTConfig = GPTConfig()
    data: Lists = Lists()

    def conflicts(self) -> list[tuple[str, str]]:
        """Return every broken rule between fields, ours and those of every run."""
        need, found = 2 * self.data.length, super().conflicts()
        if self.model.context < need:
            found.append(("model.context", f"a list and its answer take {need} tokens"))
        return found


@dataclass(frozen=True)
class SortSource:
    """Lists by number: `start` and `size` name a range of the shuffled numbers."""

    length: int
    seed: int
    start: int
    size: int

    @property
    def fingerprint(self) -> str:
        return f"sort/{self.length}/{self.seed}/{self.start}+{self.size}"

    def __len__(self) -> int:
        return self.size

    def batch(self, index: Any, epoch: Any, key: int) -> Batch:
        """Return x and y i64[m, 2 * length]; only the answer counts."""
        import numpy as np

        from surefoot.data.order import Permutation

        shuffle = Permutation(10**self.length, derive(self.seed, "lists"))
        number = shuffle(self.start + index, np.zeros_like(index))  # [m]
        digits = number[:, None] // 10 ** np.arange(self.length) % 10  # [m, L]
        line = np.concatenate([digits, np.full((len(index), 1), MARK), np.sort(digits)], 1)
        x, y = line[:, :-1], line[:, 1:].copy()
        y[:, : self.length] = IGNORED
        return Batch({"x": x, "y": y}, weight=len(index) * self.length)


def build(config: SortConfig, world: World) -> Job:
    """Make the lists and one GPT."""
    from surefoot import Job, Learner
    from surefoot.nn.gpt import GPT
    from surefoot.nn.optim import build_optimisers

    model = GPT(config.model, len(ALPHABET), seed=derive(config.train.seed, "init"))
    model = model.to(world.device)
    trained, held = split(config)
    return Job(
        source=trained,
        learners={"main": Learner(model, loss, build_optimisers(model, config.optim))},
        evals={"held out": partial(score, held=held, config=config, to=world.to)},
        notes=[
            f"data   {len(trained):,} lists of {config.data.length} digits, {len(held):,} held out"
        ],
    )


def split(config: SortConfig) -> tuple[SortSource, SortSource]:
    """Return the lists that train and those that are held out."""
    every, seed = 10**config.data.length, config.train.seed
    cut = round(every * (1 - config.data.val_ratio))
    lists = partial(SortSource, config.data.length, seed)
    return lists(0, cut), lists(cut, every - cut)


def loss(model: nn.Module, batch: Batch) -> Loss:
    """Nats summed over the digits of the answers."""
    from surefoot import Loss

    return Loss(model(batch.fields["x"], batch.fields["y"]))


def score(
    model: nn.Module, *, held: SortSource, config: SortConfig, to: Callable[[Batch], Batch]
) -> dict[str, float]:
    """Return loss and accuracy a digit, and the share of lists sorted without a mistake."""
    import numpy as np

    from surefoot.engine import next_token_scores

    index = np.arange(min(len(held), config.data.val_lists))
    batch = to(held.batch(index, np.zeros_like(index), 0))
    scores = next_token_scores(model, [batch])
    best = model(batch.fields["x"]).argmax(-1)  # [m, 2L]: right everywhere = right when it writes
    right = (best == batch.fields["y"])[:, config.data.length :].all(1)
    return {"val_loss": scores.loss, "top1": scores.top1, "exact": float(right.float().mean())}


def speak(config: SortConfig, files: Mapping[str, str], world: World) -> Speaker:
    """Return the model for `surefoot sample`."""
    from surefoot.data.tokenizer import Characters
    from surefoot.engine import TextSpeaker
    from surefoot.nn.gpt import GPT

    model = GPT(config.model, len(ALPHABET)).to(world.device)
    return TextSpeaker({"main": model}, Characters(ALPHABET), "593017>")


recipe = Recipe(
    name="sort",
    summary="sort short lists of digits",
    config=SortConfig,
    build=build,
    speak=speak,
    default_preset="laptop",
    presets={
        "tiny": {
            "model": {"d_model": 16, "num_layers": 1, "num_heads": 2, "context": 12},
            "train": {"batch_size": 16, "max_steps": 30},
            "schedule": {"warmup_steps": 5},
            "cadence": {"validate_every": 10, "sample_every": 0, "save_every": 10},
        },
        "laptop": {
            "model": {"d_model": 64, "num_layers": 2, "num_heads": 4, "context": 12},
            "train": {"batch_size": 64, "max_steps": 600},
            "schedule": {"warmup_steps": 50},
            "cadence": {"validate_every": 100},
        },
    },
)
