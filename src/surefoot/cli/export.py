"""`surefoot export RUN --to FORMAT`: a model for other programs, checked on the spot."""

from __future__ import annotations

import json
from dataclasses import asdict

from surefoot import use
from surefoot.cli.options import parser

__all__ = ["run"]

_QUANTS = ("f32", "f16", "q8_0", "q4_0")


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    own = parser("export", "Give a model to other programs.")
    own.add_argument("run", nargs="?", default="last", help="name, number, prefix or `last`")
    own.add_argument(
        "--to", required=True, type=use.format_named, metavar="FORMAT",
        help="hf: a folder for transformers; pt: files for torch; gguf: a file for llama.cpp; "
        "ollama: that and a Modelfile; onnx: a graph for onnxruntime",
    )  # fmt: skip
    own.add_argument("--out", required=True, metavar="PATH", help="what to write; must not exist")
    own.add_argument(
        "--quant", choices=_QUANTS, default="f32", help="gguf, ollama: how matrices are held"
    )
    own.add_argument(
        "--merge", action="store_true", help="hf: adapters become a part of the weights"
    )
    own.add_argument("--checkpoint", default="best", help="best (default), last or a step")
    own.add_argument("--learner", help="which model, where a run has several")
    options = own.parse_args(argv)
    if options.quant != "f32" and options.to not in ("gguf", "ollama"):
        own.error("--quant is for --to gguf and --to ollama")
    found, step = use.export(
        options.run, options.to, options.out, runs=options.runs, checkpoint=options.checkpoint,
        learner=options.learner, quant=options.quant, merge=options.merge,
    )  # fmt: skip
    if options.json:
        print(json.dumps({**asdict(found), "path": str(found.path), "step": step}))
        return 0
    print(f"wrote  {found.path}, checkpoint of step {step}")
    print(
        f"check  {found.positions} positions: logits up to {found.scale:.2f} differ by at most "
        f"{found.difference:.2g}; the likeliest token is the same on {found.agree:.1%}"
    )
    print(f"       computed by {found.by}")
    return 0
