"""What a tuned model is looked at with: held-out files, an outside text, functions to complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from surefoot.data.batch import Batch
from surefoot.data.bpe import BPE
from surefoot.data.compile_rate import Completion, Prompt, Verdict, function_prompts, judge
from surefoot.data.packed import pack, rows
from surefoot.data.parse_rate import brace_prompts, judge_parse
from surefoot.data.problem_prompts import leaks, read_problems
from surefoot.data.repository import Repository
from surefoot.engine import World
from surefoot.errors import DataError
from surefoot.nn.adapters import Pretrained
from surefoot.recipes.code.judge import (
    Judge,
    ShareJudge,
    TextJudge,
    as_they_are,
    written,
)
from surefoot.recipes.code.settings import CodeConfig, Judging

__all__ = ["looks", "remember", "samplers"]

_SAMPLES = 2

Asked = Callable[[Sequence[Completion]], Sequence[Verdict]]


def looks(config: CodeConfig, code: Repository, bpe: BPE, world: World) -> dict[str, Judge[Any]]:
    """Return how the model is looked at, by name; `test` is for `surefoot evaluate` alone."""
    ask = config.evaluation
    found: dict[str, Judge[Any]] = {}
    for name, label in (("val", "held out"), ("test", "test")):
        source, bits = _rows(config, [f.text for f in code.sides[name]], bpe, world, ask.val_tokens)
        found[label] = TextJudge(source, name, bits)
    if ask.outside_tokens:
        source, _ = _rows(config, [_outside()], bpe, world, ask.outside_tokens)
        found["outside"] = TextJudge(source, "outside")
    for side, label in (("val", "completions"), ("test", "test completions")):
        texts = {f.name: f.text for f in code.sides[side]}
        for name, prefix, prompts_of, asked in _KINDS:
            prompts = prompts_of(code.sides[side], ask.prompts, config.train.seed)
            if prompts:
                shown = label if name == "compile" else f"{label} in other languages"
                own = as_they_are(prompts, texts, bpe, ask.new_tokens)
                found[shown] = ShareJudge(_writing(ask, bpe, prompts), asked, name, prefix, own)
    if ask.prompts_file is not None:
        found["problems"] = _problems(config, code, bpe, ask.prompts_file)
    return found


def _problems(config: CodeConfig, code: Repository, bpe: BPE, path: Path) -> Judge[Any]:
    """Return how completions of a file's problems are looked at.

    Raises DataError where problems stand in what is trained on.
    """
    ask = config.evaluation
    problems = read_problems(path, ask.prompts, config.train.seed)
    known = leaks(problems, (f.text for f in code.sides["train"]))
    if known:
        more = f" and {len(known) - 3} more" if len(known) > 3 else ""
        raise DataError(
            f"evaluation.prompts_file: {len(known)} of {len(problems)} problems stand in the code that is "
            f"trained on: {', '.join(known[:3])}{more}", where=str(path),
            fix="leave those files out of the repository, or take other problems",
        )  # fmt: skip
    write = _writing(ask, bpe, [p.prompt for p in problems])
    return ShareJudge(write, judge, "problems", "problems_")


_KINDS: tuple[tuple[str, str, Callable[..., list[Prompt]], Asked], ...] = (
    ("compile", "", function_prompts, judge),
    ("parse", "parse_", brace_prompts, judge_parse),
)


def _writing(ask: Judging, bpe: BPE, prompts: list[Prompt]) -> Callable[[Any], list[Completion]]:
    return partial(written, bpe=bpe, prompts=prompts, tokens=ask.new_tokens, seen=ask.prompt_tokens)


def _outside() -> str:
    """Return a text that is no code, and that every Python carries: what is forgotten of it?"""
    from pydoc_data.topics import topics

    return "\n\n".join(text for _, text in sorted(topics.items()))


def _rows(
    config: CodeConfig, texts: list[str], bpe: BPE, world: World, most: int
) -> tuple[Callable[[], Iterator[Batch]], float]:
    """Return how to go through `texts` in rows, and how many tokens stand for a byte."""
    tokens = pack(texts, bpe)
    size = sum(len(text.encode()) for text in texts)

    def once() -> Iterator[Batch]:
        found = rows(tokens, config.context, config.evaluation.val_batch, most)
        return map(world.to, found)

    return once, (len(tokens) - 1) / max(1, size)


def remember(judges: Mapping[str, Judge[Any]], model: Pretrained) -> None:
    """Look at the base before its weights are trained."""
    model.eval()
    with torch.no_grad():
        for judge in judges.values():
            judge.remember(model)
    model.train()


def samplers(config: CodeConfig, code: Repository, bpe: BPE) -> dict[str, Any]:
    """Return completions of held-out functions, by where they are."""

    def complete(model: Any, seed: int, *, prompt: Prompt) -> str:
        tokens, seen = config.evaluation.new_tokens, config.evaluation.prompt_tokens
        (found,) = written(model, bpe, [prompt], tokens, seen)
        return "\n".join(prompt.prefix.split("\n")[-3:]) + found.text

    prompts = [
        p for kind in _KINDS for p in kind[2](code.sides["val"], _SAMPLES, config.train.seed)
    ]
    return {f"{p.file}:{p.line}": partial(complete, prompt=p) for p in prompts}
