"""Did you mean: the nearest of some names, by typing distance and by what people call things.

Plain string work, with no import that a light verb would have to pay for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["SYNONYMS", "VALUE_SYNONYMS", "nearest", "one_of", "suggest_fields", "suggest_value"]

# What other tools and habits call a setting -> the leaf names that it may be here, best first.
SYNONYMS: dict[str, str] = {
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "algorithm": "optim.kind",
    "amp": "precision",
    "batch": "batch_size",
    "bf16": "precision",
    "bs": "batch_size",
    "checkpoint_every": "save_every",
    "checkpoint_interval": "save_every",
    "context_length": "context",
    "context_window": "context",
    "cores": "threads",
    "ctx": "context",
    "cuda": "device",
    "data_path": "path",
    "depth": "num_layers",
    "dim": "d_model",
    "dim_feedforward": "d_ff",
    "dim_model": "d_model",
    "drop": "dropout",
    "early_stopping": "patience",
    "early_stopping_patience": "patience",
    "embed_dim": "d_model",
    "embedding_size": "d_model",
    "epoch": "epochs",
    "eval_every": "validate_every",
    "eval_iters": "validate_every",
    "eval_steps": "validate_every",
    "ffn_dim": "d_ff",
    "file": "path",
    "fp16": "precision",
    "gpu": "device",
    "grad_norm_clip": "clip",
    "gradient_clip_val": "clip",
    "heads": "num_heads",
    "hidden": "d_model",
    "hidden_dim": "d_model",
    "hidden_size": "d_model",
    "input": "path",
    "intermediate_size": "d_ff",
    "iterations": "max_steps",
    "iters": "max_steps",
    "jit": "compile",
    "keep_last": "last",
    "layers": "num_layers",
    "logging_steps": "log_every",
    "lr_scheduler": "schedule.kind",
    "lr_scheduler_type": "schedule.kind",
    "manual_seed": "seed",
    "max_epochs": "epochs",
    "max_grad_norm": "clip",
    "max_length": "context",
    "max_seq_len": "context",
    "micro_batch": "micro_batch_size",
    "minibatch_size": "batch_size",
    "mixed_precision": "precision",
    "n_heads": "num_heads",
    "n_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_epochs": "epochs",
    "num_hidden_layers": "num_layers",
    "num_key_value_heads": "num_kv_heads",
    "num_steps": "max_steps",
    "num_train_epochs": "epochs",
    "num_warmup_steps": "warmup_steps",
    "num_workers": "prefetch_threads",
    "opt": "optim.kind",
    "optimiser": "optim.kind",
    "optimizer": "optim.kind",
    "per_device_train_batch_size": "micro_batch_size",
    "print_every": "log_every",
    "random_seed": "seed",
    "rms_norm_eps": "norm_eps",
    "sample_interval": "sample_every",
    "save_interval": "save_every",
    "save_steps": "save_every",
    "save_total_limit": "last",
    "scheduler": "schedule.kind",
    "seq_len": "context",
    "seq_length": "context",
    "sequence_length": "context",
    "steps": "max_steps",
    "tie_word_embeddings": "tie_embeddings",
    "torch_compile": "compile",
    "total_steps": "max_steps",
    "train_steps": "max_steps",
    "val_every": "validate_every",
    "val_interval": "validate_every",
    "warmup": "warmup_steps",
    "wd": "weight_decay",
    "width": "d_model",
    "workers": "prefetch_threads",
}

VALUE_SYNONYMS: dict[str, tuple[str, ...]] = {
    "adam": ("adamw",),
    "bfloat16": ("bf16",),
    "false": ("off", "none"),
    "flash": ("sdpa",),
    "float16": ("fp16",),
    "float32": ("fp32",),
    "fused": ("chunked", "sdpa"),
    "gpt": ("modern", "gpt2"),
    "gpu": ("cuda",),
    "half": ("fp16", "bf16"),
    "linear": ("wsd",),
    "llama": ("modern",),
    "nvidia": ("cuda",),
    "no": ("off", "none"),
    "qwen3": ("modern",),
    "single": ("fp32",),
    "true": ("on",),
    "yes": ("on",),
}


def _bare(word: str) -> str:
    return "".join(c for c in word.lower() if c not in "-_. ")


def _distance(a: str, b: str) -> int:
    """Return how many insertions, deletions, changes and swaps of neighbours turn `a` into `b`."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def nearest(word: str, options: Iterable[str]) -> str | None:
    """Return the option that `word` was most likely meant to be, or None when none is near.

    >>> nearest("dmodel", ["d_model", "d_ff", "num_layers"])
    'd_model'
    >>> nearest("laptp", ["tiny", "laptop", "full"])
    'laptop'
    >>> nearest("zebra", ["tiny", "laptop", "full"]) is None
    True
    """
    bare, best, least = _bare(word), None, 1.0
    for option in options:
        other = _bare(option)
        size = max(len(bare), len(other), 1)
        share = _distance(bare, other) / size
        if min(len(bare), len(other)) >= 3 and (other.startswith(bare) or bare.startswith(other)):
            share = min(share, 0.3)
        if share < least and (share <= 0.34 or (share <= 0.5 and size <= 4)):
            best, least = option, share
    return best


def one_of(words: Sequence[str], joint: str = "or") -> str:
    """Return the words as people list them.

    >>> one_of(["a", "b", "c"])
    'a, b or c'
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {joint} {words[-1]}"


def suggest_fields(word: str, paths: Iterable[str], section: str = "") -> list[str]:
    """Return the settings that `word`, found in `section`, may stand for, best first.

    `paths` are all settings as `section.name`. An exact name in another section comes first, then
    what others call it, then typing mistakes in the same section, then anywhere.
    """
    paths, word = list(paths), word.replace("-", "_")
    name = word.rpartition(".")[2]
    for wanted in (name, SYNONYMS.get(name.lower(), "")):
        found = [p for p in paths if wanted and (p == wanted or p.endswith(f".{wanted}"))]
        if found:
            return found
    here = [p for p in paths if section and p.startswith(f"{section}.")]
    for group in (here, paths):
        near = nearest(name, [p.rpartition(".")[2] for p in group])
        if near:
            return [p for p in group if p.rpartition(".")[2] == near]
    near = nearest(word, paths) or nearest(name, SYNONYMS)
    if near in SYNONYMS:
        return [p for p in paths if p == SYNONYMS[near] or p.endswith(f".{SYNONYMS[near]}")]
    return [near] if near else []


def suggest_value(value: object, choices: Sequence[str]) -> str | None:
    """Return the choice that a wrong value was most likely meant to be.

    >>> suggest_value("bfloat16", ["auto", "fp32", "bf16"])
    'bf16'
    """
    word = str(value).lower()
    for other in VALUE_SYNONYMS.get(word, ()):
        if other in choices:
            return other
    return nearest(word, choices)
