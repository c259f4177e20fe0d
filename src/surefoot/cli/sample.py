"""`surefoot sample RUN` and `surefoot evaluate RUN`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from surefoot.errors import SurefootError

if TYPE_CHECKING:
    from surefoot.engine import Speaker

__all__ = ["run"]


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    return _sample(argv) if verb == "sample" else _evaluate(argv)


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    own.add_argument("run", nargs="?", default="last", help="name, number, prefix or `last`")
    own.add_argument("--checkpoint", default="best", help="best (default), last or a step")
    own.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    own.add_argument("--runs", metavar="DIR", help="folder of the runs (or $SUREFOOT_RUNS)")
    own.add_argument("--json", action="store_true", help="print one JSON document")
    return own


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("expected a share above 0, up to 1")
    return value


def _warmth(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("expected 0 (always the likeliest) or more")
    return value


def _sample(argv: list[str]) -> int:
    own = _parser("surefoot sample", "Let a model write.")
    own.add_argument("--prompt", help="text to continue")
    own.add_argument("--tokens", type=_count, default=300, help="how many to write (300)")
    own.add_argument("--temperature", type=_warmth, default=0.8, help="0 is greedy (0.8)")
    own.add_argument("--top-k", type=_count, help="choose among the K likeliest")
    own.add_argument("--top-p", type=_share, help="choose among the likeliest that sum to P")
    own.add_argument("--seed", type=int, default=0, help="the same seed writes the same (0)")
    own.add_argument("--learner", help="which model, where a run has several")
    own.add_argument("--ask", metavar="Q", help='a question, like "12 x 34", to every model')
    options = own.parse_args(argv)
    from surefoot import api
    from surefoot.engine import Request

    speaker, step = api.load(
        options.run, runs=options.runs, checkpoint=options.checkpoint, device=options.device
    )
    if options.ask is not None:
        return _ask(options, speaker, step)
    learner = options.learner or next(iter(speaker.models))
    _known([learner], speaker)
    request = Request(
        options.prompt, options.tokens, options.temperature, options.top_k, options.top_p,
        options.seed,
    )  # fmt: skip
    pieces = speaker.reply(learner, request)
    if options.json:
        document = {
            "step": step,
            "learner": learner,
            "prompt": request.prompt,
            "seed": request.seed,
        }
        print(json.dumps({**document, "text": "".join(pieces)}, ensure_ascii=False))
        return 0
    print(f"checkpoint of step {step}", file=sys.stderr)
    print(request.prompt or "", end="")
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def _ask(options: argparse.Namespace, speaker: Speaker, step: int) -> int:
    """Put one question to one learner, or to all."""
    from surefoot.engine import Answerer

    if not isinstance(speaker, Answerer) or "ask" not in speaker.questions:
        raise SurefootError("this recipe answers no questions", fix="--prompt TEXT lets it write")
    names = [options.learner] if options.learner else list(speaker.models)
    _known(names, speaker)
    found = {name: dict(speaker.questions["ask"](name, options.ask)) for name in names}
    if options.json:
        print(json.dumps({"step": step, "ask": options.ask, "answers": found}))
        return 0
    print(f"checkpoint of step {step}", file=sys.stderr)
    for name, facts in found.items():
        label = f"{name:<8} " if len(speaker.models) > 1 else ""
        print(f"{label}{options.ask} = {facts['text']}")
    return 0


def _known(names: list[str], speaker: Speaker) -> None:
    for name in names:
        if name not in speaker.models:
            raise SurefootError(f"no learner {name}", fix=f"one of {', '.join(speaker.models)}")


def _evaluate(argv: list[str]) -> int:
    own = _parser("surefoot evaluate", "Measure a model on held-out data.")
    options = own.parse_args(argv)
    from surefoot import api
    from surefoot.track.text import number

    step, scores = api.evaluate(
        options.run, runs=options.runs, checkpoint=options.checkpoint, device=options.device
    )
    if options.json:
        print(json.dumps({"step": step, "metrics": scores}))
        return 0
    print(f"checkpoint of step {step}")
    for learner, found in scores.items():
        interval = [found.pop(key) for key in ("exact_low", "exact_high", "asked") if key in found]
        for name, value in found.items():
            label = name if len(scores) == 1 else f"{learner}.{name}"
            shown = f"{value:.4f}" if value >= 0.01 else number(value)
            print(f"  {label:<24} {shown}{_interval(value, *interval) if name == 'exact' else ''}")
    return 0


def _interval(share: float, low: float = 0.0, high: float = 1.0, asked: float = 0.0) -> str:
    """Return how far a share is known, where it was said of how many."""
    right = f"{round(share * asked):,} of {asked:,.0f}"
    return f"  ({right}; {low:.3%} to {high:.3%} with 95 %)" if asked else ""
