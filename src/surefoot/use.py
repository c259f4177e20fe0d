"""Use what was trained, as functions: load, evaluate, export. Importing this module is light."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from surefoot.api import stored
from surefoot.config.suggest import nearest, one_of
from surefoot.errors import ConfigError, RunError
from surefoot.track.folder import RunFolder, find, runs_dir

if TYPE_CHECKING:
    from surefoot.engine import Speaker
    from surefoot.formats.export import Exported

__all__ = ["FORMATS", "evaluate", "export", "format_named", "load"]

FORMATS = ("hf", "pt", "gguf", "ollama", "onnx")
_PROGRAMS = {  # whose format it is -> format
    "huggingface": "hf", "transformers": "hf", "pytorch": "pt", "torch": "pt", "llamacpp": "gguf",
    "llama": "gguf", "onnxruntime": "onnx", "safetensors": "hf",
}  # fmt: skip


def format_named(word: str) -> str:
    """Return the format that `word` means: itself, or that of the program. Raises ConfigError.

    >>> format_named("GGUF"), format_named("torch"), format_named("llama.cpp")
    ('gguf', 'pt', 'gguf')
    """
    bare = word.lower().replace(".", "").replace("-", "").replace("_", "")
    found = _PROGRAMS.get(bare, bare)
    if found not in FORMATS:
        near = nearest(bare, [*FORMATS, *_PROGRAMS])
        fix = f"did you mean {_PROGRAMS.get(near, near)}?" if near else f"one of {one_of(FORMATS)}"
        raise ConfigError(f"there is no format {word} to export to", fix=fix)
    return found


def load(
    run: str | Path = "last",
    *,
    runs: Path | str | None = None,
    checkpoint: str | int = "best",
    device: str = "auto",
    dtype: str = "fp32",
    engine: str = "native",
) -> tuple[Speaker, int]:
    """Return a run's models with their weights, and the step they are from.

    `checkpoint` is `best`, `last` or a step; `dtype` (fp32, bf16, fp16, int8, int4) is how weights
    are held. Works on a run that is being trained. A recipe without `speak` is built, with its data,
    and only `models` are of use. Raises RunError when there is no such checkpoint, Unsupported where
    weights cannot be held like that.

    `engine` is `native` or `llama.cpp`, which writes what a GPT would, through a GGUF.
    """
    from surefoot.engine import Silent, open_world
    from surefoot.engine.load import fill, narrow
    from surefoot.engine.rebuild import repeated

    folder = find(runs_dir(runs), str(run))
    kept = stored(folder)
    config, world = repeated(kept.config, folder.meta), open_world(device)
    if kept.recipe.speak is None:
        job = kept.recipe.build(config, world)
        models = {name: learner.model.eval() for name, learner in job.learners.items()}
        speaker: Speaker = Silent(models, kept.recipe.name)
    else:
        speaker = kept.recipe.speak(config, kept.files(), world)
    tokenizer = getattr(speaker, "tokenizer", None)
    _same_words(
        getattr(tokenizer, "fingerprint", None), folder,
        "bring its tokenizer.json back, from a mirror or from an export",
    )  # fmt: skip
    step = fill(speaker.models, folder, checkpoint)
    if engine == "llama.cpp":
        from surefoot.formats.export import through_llama

        return through_llama(speaker, dtype), step
    narrow(speaker.models, dtype)
    return speaker, step


def _same_words(there: str | None, folder: RunFolder, fix: str) -> None:
    """Raise RunError when `there` is another tokenizer than the one that the run was trained with."""
    recorded = (folder.meta.get("data") or {}).get("tokenizer")
    if None not in (recorded, there) and there != recorded:
        raise RunError(
            f"the tokenizer of this run is {there}, and it was trained with {recorded}",
            where=str(folder.path), fix=fix,
        )  # fmt: skip


def evaluate(
    run: str | Path = "last",
    *,
    runs: Path | str | None = None,
    checkpoint: str | int = "best",
    device: str = "auto",
) -> tuple[int, dict[str, dict[str, float]]]:
    """Measure a run's models on its held-out data; return the step and metrics by learner.

    On the kind of device that it was trained on they compute as in training, so what was measured
    there comes out again. Raises RunError, and Unsupported where what computed is not to be had.
    """
    from surefoot.engine import open_world
    from surefoot.engine.load import fill
    from surefoot.engine.rebuild import as_trained, repeated

    folder = find(runs_dir(runs), str(run))
    kept, world = stored(folder), open_world(device)
    job = kept.recipe.build(repeated(kept.config, folder.meta), world)
    as_trained(job, folder, world)
    fix = "bring the file of --tokenizer, or the texts it was learned from, back as they were"
    _same_words(job.data.get("tokenizer"), folder, fix)
    step = fill({name: x.model for name, x in job.learners.items()}, folder, checkpoint)
    scores: dict[str, dict[str, float]] = {}
    for name, learner in job.learners.items():
        with learner.evaluating() as model:
            exams = (job.exams or job.evals).values()
            scores[name] = {k: v for exam in exams for k, v in exam(model).items()}
    return step, scores


def export(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    runs: Path | str | None = None,
    checkpoint: str | int = "best",
    learner: str | None = None,
    quant: str = "f32",
    merge: bool = False,
) -> tuple[Exported, int]:
    """Write a run's model to `out`, and compare what was written with the original.

    `to` is one of FORMATS, or the program that reads it (transformers, torch, llama.cpp). `quant`
    (f32, f16, q8_0, q4_0) is how GGUF holds matrices; `merge` makes adapters a part of the weights.
    Returns what was found, and the step of the weights. Raises ConfigError for an unknown format;
    RunError, Unsupported or CheckFailed as `formats.export` does.
    """
    to = format_named(to)
    from surefoot.engine import TextSpeaker
    from surefoot.formats.export import Exporter, write
    from surefoot.nn.gpt import GPT

    speaker, step = load(run, runs=runs, checkpoint=checkpoint, device="cpu")
    name = learner or next(iter(speaker.models))
    model = speaker.models.get(name)
    if model is not None and isinstance(speaker, Exporter):
        return speaker.export(name, Path(out), to, quant, merge), step
    if merge:
        raise RunError(f"{name} has no adapters to merge", where=str(run), fix="leave --merge out")
    if not isinstance(speaker, TextSpeaker) or not isinstance(model, GPT):
        fix = f"from Python: surefoot.load({str(run)!r})[0].models[{name!r}] is a torch module"
        what = f"{name} is no language model that other programs know"
        raise RunError(what, where=str(run), fix=fix)
    return write(model, speaker.tokenizer, Path(out), to, quant), step
