"""`surefoot sample RUN` and `surefoot evaluate RUN`."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from surefoot.cli.folded import folded
from surefoot.cli.options import Parser, parser
from surefoot.errors import ConfigError, DataError, RunError
from surefoot.track.text import bytes_text, clean

if TYPE_CHECKING:
    from surefoot.engine import Request, Speaker

__all__ = ["painted", "run"]

QUESTIONS = {"ask": "ask", "rgb": "rgb", "name": "name_text"}  # what is asked, and by which flag


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    return _sample(argv) if verb == "sample" else _evaluate(argv)


def _parser(verb: str, description: str) -> Parser:
    own = parser(verb, description)
    own.add_argument("run", nargs="?", default="last", help="name, number, prefix or `last`")
    own.add_argument("--checkpoint", default="best", help="best (default), last or a step")
    own.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    return own


def _number(kind: type[float], low: float, high: float, said: str) -> Callable[[str], float]:
    """Return a reader for argparse of numbers from `low` to `high`, which are `said` in words."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind("-1")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {said}")
        return value

    return read


_MOST = 1_000_000  # texts or tokens asked for at once
_COUNT = _number(int, 1, _MOST, f"a whole number from 1 to {_MOST:,}")
_WARMTH = _number(float, 0, sys.float_info.max, "0 (always the likeliest) or more")
_SHARE = _number(float, sys.float_info.min, 1, "a share above 0, up to 1")
_LEAST = _number(float, 0, 1, "a share from 0 to 1")
_FACTOR = _number(float, 1e-9, 1e9, "a factor above 0; 1 changes nothing")


def _words() -> argparse.ArgumentParser:
    own = _parser("sample", "Let a model write.")
    own.add_argument("--prompt", help="text to continue")
    own.add_argument("--prompts", metavar="FILE", help="continue each line of a file, at once")
    own.add_argument("--repl", action="store_true", help="continue what you type, until Ctrl-D")
    own.add_argument("--samples", type=_COUNT, default=1, metavar="N", help="texts a prompt (1)")
    own.add_argument("--tokens", type=_COUNT, default=300, help="how many to write (300)")
    own.add_argument("--temperature", type=_WARMTH, default=0.8, help="0 is greedy (0.8)")
    own.add_argument("--top-k", type=_COUNT, help="choose among the K likeliest")
    own.add_argument("--top-p", type=_SHARE, help="choose among the likeliest that sum to P")
    own.add_argument(
        "--min-p", type=_LEAST, help="choose among those P times as likely as the first"
    )
    own.add_argument(
        "--repetition-penalty", type=_FACTOR, default=1.0, metavar="X",
        help="above 1 avoids tokens that the text has (1)",
    )  # fmt: skip
    own.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; repeatable"
    )
    own.add_argument("--seed", type=int, default=0, help="the same seed writes the same (0)")
    own.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16", "int8", "int4"), default="fp32",
        help="of weights; int8 and int4 are for processors, and faster",
    )  # fmt: skip
    own.add_argument(
        "--engine", choices=("native", "llama.cpp"), default="native",
        help="what computes: torch, or llama.cpp through a GGUF (pip install llama-cpp-python)",
    )  # fmt: skip
    own.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=None,
        help="show each word when it is written (on a terminal)",
    )  # fmt: skip
    own.add_argument("--learner", help="which model, where a run has several")
    own.add_argument("--ask", metavar="Q", help='a question, like "12 x 34", to every model')
    own.add_argument("--rgb", metavar="R,G,B", help="a colour, channels from 0 to 1, or #rrggbb")
    own.add_argument("--name-text", metavar="NAME", help='the name of a colour, like "dusty teal"')
    return own


def _sample(argv: list[str]) -> int:
    own = _words()
    if "--rgb" in argv[:-1]:  # a colour that begins with a minus is a mistake, and no option
        place = argv.index("--rgb")
        argv = [*argv[:place], f"--rgb={argv[place + 1]}", *argv[place + 2 :]]
    options = own.parse_args(argv)
    _fits(own, options)
    prompts = _prompts(options)
    from surefoot import use

    speaker, step = use.load(
        options.run, runs=options.runs, checkpoint=options.checkpoint, device=options.device,
        dtype=options.dtype, engine=options.engine,
    )  # fmt: skip
    for kind, flag in QUESTIONS.items():
        if (question := getattr(options, flag)) is not None:
            return _ask(options, speaker, step, kind, question)
    learner = options.learner or next(iter(speaker.models))
    _known([learner], speaker)
    if not options.json:
        print(f"checkpoint of step {step}", file=sys.stderr)
    if options.repl:
        return _repl(options, speaker, learner)
    seeds = range(options.seed, options.seed + options.samples)
    requests = [_request(options, prompt, seed) for prompt in prompts for seed in seeds]
    for prompt in dict.fromkeys(request.prompt for request in requests):
        _remark(speaker, learner, prompt)
    if len(requests) > 1:
        return _several(options, speaker, learner, step, requests)
    if options.json:
        text = "".join(speaker.reply(learner, requests[0]))
        told = {"step": step, "learner": learner, "prompt": options.prompt, "seed": options.seed}
        print(json.dumps({**told, "text": text}, ensure_ascii=False))
        return 0
    begun = time.monotonic()
    _write(options, speaker, learner, requests[0])
    _cost(begun)
    return 0


def _fits(own: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse flags that do not go together."""
    names = ("prompt", "prompts", "repl", *QUESTIONS.values())
    given = [f"--{n.replace('_', '-')}" for n in names if getattr(options, n) not in (None, False)]
    if len(given) > 1:
        own.error(f"{' and '.join(given)}: give one of them")
    if options.repl and (options.json or options.samples > 1):
        own.error("--repl writes one text at a time, for people")
    if options.prompt == "":
        fix = "give some text; without --prompt the model begins by itself"
        raise ConfigError("--prompt is empty", fix=fix)
    if "" in options.stop:
        own.error("--stop: expected some text")
    if options.stream and (options.json or options.prompts or options.samples > 1):
        own.error("--stream shows one text at a time: not with --json, --prompts or --samples")
    if options.engine != "native" and options.device not in ("auto", "cpu"):
        own.error(f"--engine {options.engine} computes on the processor: leave --device out")


def _prompts(options: argparse.Namespace) -> list[str | None]:
    """Return what is to be continued: the prompt, each line of a file, or None."""
    if not options.prompts:
        return [options.prompt]
    try:
        text = Path(options.prompts).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        fix = "give a text in UTF-8 that you may read, with a prompt on each line"
        raise DataError(f"--prompts: cannot read {options.prompts}: {why}", fix=fix) from None
    if not text:
        raise DataError(f"--prompts: {options.prompts} is empty", fix="a prompt on each line")
    found = text.removesuffix("\n").split("\n")
    if len(found) * options.samples > _MOST:
        what = f"{len(found):,} prompts x {options.samples:,} samples are more than {_MOST:,} texts"
        raise ConfigError(what, fix="fewer --samples, or fewer lines at a time")
    return list(found)


def _request(options: argparse.Namespace, prompt: str | None, seed: int) -> Request:
    from surefoot.engine import Request

    return Request(
        prompt, options.tokens, options.temperature, options.top_k, options.top_p, seed,
        options.min_p, options.repetition_penalty, tuple(options.stop),
    )  # fmt: skip


def _several(
    options: argparse.Namespace,
    speaker: Speaker,
    learner: str,
    step: int,
    requests: list[Request],
) -> int:
    """Write several texts, at once where the model can."""
    from surefoot.engine import TextSpeaker

    begun = time.monotonic()
    if isinstance(speaker, TextSpeaker):
        texts = speaker.replies(learner, requests)
    else:
        texts = ["".join(speaker.reply(learner, request)) for request in requests]
    if options.json:
        found = [
            {"prompt": r.prompt, "seed": r.seed, "text": text} for r, text in zip(requests, texts)
        ]
        told = {"step": step, "learner": learner, "texts": found}
        print(json.dumps(told, ensure_ascii=False))
        return 0
    for number, (request, text) in enumerate(zip(requests, texts), 1):
        print(f"[{number}]", _shown((request.prompt or "") + text), end="\n\n")
    _cost(begun)
    return 0


def _write(options: argparse.Namespace, speaker: Speaker, learner: str, request: Request) -> None:
    stream = sys.stdout.isatty() if options.stream is None else options.stream
    pieces = speaker.reply(learner, request)
    if not stream:
        print(_shown((request.prompt or "") + "".join(pieces)))
        return
    text = map(_shown, chain([request.prompt or ""], pieces))
    for piece in folded(text, get_terminal_size().columns) if sys.stdout.isatty() else text:
        print(piece, end="", flush=True)
    print()


def _cost(begun: float) -> None:
    """Say how long it took, and what memory this process has."""
    from surefoot.engine.memory import resident

    took = time.monotonic() - begun
    print(f"{took:.1f} s, {bytes_text(resident())} resident", file=sys.stderr)


def _shown(text: str) -> str:
    """Return text that cannot steer a terminal; a file or a pipe gets it as it is."""
    return clean(text) if sys.stdout.isatty() else text


def _repl(options: argparse.Namespace, speaker: Speaker, learner: str) -> int:
    """Continue line after line, each with the next seed; an empty one begins by itself."""
    asking = sys.stdin.isatty()
    if asking:
        print("type a beginning and Enter; Ctrl-C ends a text, Ctrl-D the program", file=sys.stderr)
    seed = options.seed
    while True:
        try:
            prompt = input("> " if asking else "") or None
        except EOFError:
            print(end="\n" if asking else "")
            return 0
        except UnicodeDecodeError:  # nothing can be read past it
            raise DataError("what was typed is not UTF-8", fix="write UTF-8") from None
        try:
            _remark(speaker, learner, prompt)
            _write(options, speaker, learner, _request(options, prompt, seed))
        except DataError as error:  # such as a character that the vocabulary lacks
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            if not asking:
                raise
            print()
        print(end="\n" if asking else "")
        seed += 1


def _remark(speaker: Speaker, learner: str, prompt: str | None) -> None:
    from surefoot.engine import TextSpeaker

    if isinstance(speaker, TextSpeaker) and (text := speaker.remark(learner, prompt)):
        print(text, file=sys.stderr)


def _ask(options: argparse.Namespace, speaker: Speaker, step: int, kind: str, question: str) -> int:
    """Put one question to one learner, or to all."""
    from surefoot.engine import Answerer

    if not isinstance(speaker, Answerer) or kind not in speaker.questions:
        what = f"this recipe answers no --{QUESTIONS[kind].replace('_', '-')}"
        raise RunError(what, fix=_instead(speaker))
    names = [options.learner] if options.learner else list(speaker.models)
    _known(names, speaker)
    found = {name: dict(speaker.questions[kind](name, question)) for name in names}
    if options.json:
        told = {"answers": found} if kind == "ask" else found[names[0]]
        print(json.dumps({"step": step, kind: question, **told}, ensure_ascii=False))
        return 0
    print(f"checkpoint of step {step}", file=sys.stderr)
    for name, facts in found.items():
        label = f"{name:<8} " if len(speaker.models) > 1 else ""
        print(f"{label}{question} = {facts['text']}" if kind == "ask" else painted(facts["text"]))
    return 0


def _instead(speaker: Speaker) -> str:
    """Return the flags that this speaker answers."""
    known = [f"--{QUESTIONS[kind].replace('_', '-')}" for kind in getattr(speaker, "questions", ())]
    return f"{' or '.join(known)}" if known else "--prompt TEXT lets it write"


def painted(text: str) -> str:
    """Return text for this terminal: before each colour like #0048ba stands a block of it.

    A pipe, a dumb terminal and $NO_COLOR get the text as it is.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal or console.no_color or console.color_system is None:
        return text
    found = Text()
    for piece in re.split(r"(#[0-9a-f]{6}\b)", text):
        found.append("      ", f"on {piece}") if piece[:1] == "#" and len(piece) == 7 else None
        found.append(f" {piece}" if piece[:1] == "#" and len(piece) == 7 else clean(piece))
    with console.capture() as shown:
        console.print(found, end="", soft_wrap=True)
    return shown.get()


def _known(names: list[str], speaker: Speaker) -> None:
    for name in names:
        if name not in speaker.models:
            raise RunError(f"no learner {name}", fix=f"one of {', '.join(speaker.models)}")


def _evaluate(argv: list[str]) -> int:
    own = _parser("evaluate", "Measure a model on held-out data.")
    options = own.parse_args(argv)
    from surefoot import use
    from surefoot.track.text import number

    step, scores = use.evaluate(
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
