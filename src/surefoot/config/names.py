"""What settings were called before, and what other tools and habits call them. Only tables."""

from __future__ import annotations

__all__ = ["ELSEWHERE", "LEFT_OUT", "RENAMED", "SYNONYMS", "VALUE_SYNONYMS"]

# Old names that are read as today's settings.
RENAMED: dict[str, str] = {
    "block_size": "model.context",
    "n_embd": "model.d_model",
    "n_layer": "model.num_layers",
    "n_head": "model.num_heads",
    "n_kv_head": "model.num_kv_heads",
    "max_iters": "train.max_steps",
    "learning_rate": "optim.lr",
    "grad_clip": "optim.clip",
    "warmup_iters": "schedule.warmup_steps",
    "lr_decay_iters": "schedule.decay_steps",
    "decay_lr": "schedule.kind",
    "dtype": "machine.precision",
    "eval_interval": "cadence.validate_every",
    "log_interval": "cadence.log_every",
}

# Old names without a counterpart, and why.
LEFT_OUT: dict[str, str] = {
    "always_save_checkpoint": "the newest and the best checkpoints are always kept",
    "backend": "chosen from the device",
    "bias": "the layout decides about biases",
    "data_dir": "choose text with data.path",
    "dataset": "choose text with data.path",
    "eval_iters": "the whole held-out part is evaluated",
    "eval_only": "use `surefoot evaluate RUN`",
    "init_from": "go on with `surefoot resume RUN`",
    "out_dir": "choose a folder with --runs and a name with --name",
    "vocab_size": "follows from the text",
    "wandb_log": "metrics are in metrics.jsonl and TensorBoard",
    "wandb_project": "use track.tags",
    "wandb_run_name": "use --name",
}

# What other tools ask for that is no setting here, and what there is instead.
ELSEWHERE: dict[str, str] = {
    word: told
    for told, words in {
        "--runs DIR is the folder of all runs, --name NAME names one": "default_root_dir logging_dir output_dir root_dir",
        "--name NAME": "experiment_name run_name",
        "the same command goes on, or `surefoot resume RUN`": "ckpt_path resume resume_from resume_from_checkpoint",
        "the best weights are kept by themselves: `surefoot sample` and `surefoot.load` take them": "load_best_model_at_end",
        "best is the lowest val_loss": "greater_is_better metric_for_best_model monitor",
        "TensorBoard is on (surefoot tb RUN); other places: docs/guides/experiments.md": "logger report_to wandb",
        "--validate-every N": "check_val_every_n_epoch evaluation_strategy eval_strategy",
        "--save-every N": "enable_checkpointing save_strategy",
        "--batch-size is the whole batch; memory decides about its pieces, or --micro-batch-size": "accumulate_grad_batches gradient_accumulation_steps",
        "--checkpointing yes, where the recipe has it": "gradient_checkpointing use_gradient_checkpointing",
        "--preset tiny ends in seconds": "fast_dev_run limit_train_batches overfit_batches",
        "every run is exact: docs/explain/determinism.md": "benchmark deterministic full_determinism",
        "nothing is called back: docs/guides/own-loop.md": "callbacks",
        "--nnodes N": "num_nodes",
        "--parallel ddp or fsdp2": "strategy",
    }.items()
    for word in words.split()
}

# A setting -> what other tools and habits call it.
_OTHERS: dict[str, str] = {
    "batch_size": "batch bs minibatch_size",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "clip": "grad_norm_clip gradient_clip_val max_grad_norm",
    "compile": "jit torch_compile",
    "context": (
        "context_length context_window ctx max_length max_seq_len seq_len seq_length "
        "sequence_length"
    ),
    "d_ff": "dim_feedforward ffn_dim intermediate_size",
    "d_model": "dim dim_model embed_dim embedding_size hidden hidden_dim hidden_size width",
    "device": "accelerator cuda gpu",
    "devices": "gpus n_gpus num_devices num_gpus num_processes",
    "dropout": "drop",
    "epochs": "epoch max_epochs num_epochs num_train_epochs",
    "eps": "adam_epsilon",
    "optim.kind": "algorithm opt optimiser optimizer",
    "schedule.kind": "lr_scheduler lr_scheduler_type scheduler",
    "last": "keep_last save_total_limit",
    "log_every": "logging_steps print_every",
    "max_steps": "iterations iters num_steps steps total_steps train_steps",
    "micro_batch_size": "micro_batch per_device_train_batch_size",
    "norm_eps": "rms_norm_eps",
    "num_heads": "heads n_heads num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "num_layers": "depth layers n_layers num_hidden_layers",
    "path": "data_path file input",
    "patience": "early_stopping early_stopping_patience",
    "precision": "amp bf16 fp16 mixed_precision",
    "prefetch_threads": "dataloader_num_workers num_workers workers",
    "sample_every": "sample_interval",
    "save_every": "checkpoint_every checkpoint_interval save_interval save_steps",
    "seed": "manual_seed random_seed",
    "threads": "cores",
    "tie_embeddings": "tie_word_embeddings",
    "validate_every": "eval_every eval_iters eval_steps val_every val_interval",
    "warmup_steps": "num_warmup_steps warmup",
    "weight_decay": "wd",
}
# What a setting is called elsewhere -> its path, or its last part where that says enough.
SYNONYMS: dict[str, str] = {word: name for name, words in _OTHERS.items() for word in words.split()}

# What a value is called elsewhere -> what it may be here, best first.
VALUE_SYNONYMS: dict[str, str] = {
    "adam": "adamw",
    "bfloat16": "bf16",
    "false": "off none",
    "flash": "sdpa",
    "float16": "fp16",
    "float32": "fp32",
    "fused": "chunked sdpa",
    "gpt": "modern gpt2",
    "gpu": "cuda",
    "half": "fp16 bf16",
    "linear": "wsd",
    "llama": "modern",
    "nvidia": "cuda",
    "no": "off none",
    "qwen3": "modern",
    "single": "fp32",
    "true": "on",
    "yes": "on",
}
