"""Names that other training systems have for a run's settings, and what each is called here: the one table of them.

    lr: 3e-4                        --> optimizer.learning_rate
    per_device_train_batch_size     --> data.packs_per_step, with what is different about it
    dtype: fp16                     --> bf16, with the reason

They are not accepted: a run has one spelling. They are what the remedy of an unknown key says, because the nearest
spelling of `lr` is a key that has nothing to do with it. Sources: the arguments of Hugging Face's `TrainingArguments`
and diffusers' scripts, PyTorch Lightning's `Trainer`, DeepSpeed's configuration, Megatron-LM, torchtitan and axolotl.
"""

from __future__ import annotations

from typing import NamedTuple


class Meaning(NamedTuple):
    """What a name from elsewhere is here.

    Attributes:
        keys: of a run; none if there is no such setting.
        why: what differs, in words; empty if nothing does.
    """

    keys: tuple[str, ...]
    why: str = ""

    def __str__(self) -> str:
        told = " and ".join(self.keys)
        return f"{told}: {self.why}" if told and self.why else told or self.why


RATE = Meaning(("optimizer.learning_rate",))
WARMUP = Meaning(("optimizer.warmup_steps",))
BATCH = Meaning(("data.packs_per_step",), "packs of data.pack_tokens tokens, over all replicas and micro-steps")
EACH = Meaning(("data.packs_per_step",), "over all replicas: packs per replica x mesh.replica")
ACCUMULATE = Meaning(("data.packs_per_step",), "packs beyond one per replica are accumulated: N x mesh.replica")
EPOCHS = Meaning(("steps",), "a run counts steps; longreel data simulate RUN.yaml says how many an epoch has")
PRECISION = Meaning(("dtype",), "bf16, float32 or float64")
BF16 = Meaning(("dtype",), "bf16")
FP32 = Meaning(("dtype",), "float32")
LENGTH = Meaning(("data.pack_tokens",), "clips are packed end to end into sequences of that many tokens")
DATA = Meaning(("data.dataset",), "a folder that longreel prepare wrote")
SAVE = Meaning(("checkpoint.every",))
KEEP = Meaning(("checkpoint.keep",))
CLIP = Meaning(("optimizer.max_grad_norm",))
SCHEDULE = Meaning(("optimizer.schedule",))
RECOMPUTE = Meaning(("model.recompute",))
FOLDER = Meaning(("out",))
RESUME = Meaning((), "leave it out: the same command goes on from the newest checkpoint in out")
SEQUENCE = Meaning(("mesh.ring", "mesh.ulysses"), "ranks that share a sequence are their product")
REPLICAS = Meaning(("mesh.replica",))
NO_FP16 = "bf16: fp16 overflows at 65,504 and needs a loss scale, which a run here has not"
LOGS = Meaning((), "leave it out: every step is logged, to metrics.jsonl and TensorBoard in out")
NODES = Meaning(("mesh.replica", "mesh.ring", "mesh.ulysses"), "their product is the number of ranks, one a GPU")

ALIASES: dict[str, Meaning] = {
    **dict.fromkeys(("lr", "base_lr", "max_lr", "peak_lr", "learningrate", "rate", "learning_rate"), RATE),
    **dict.fromkeys(("warmup", "warmup_steps", "lr_warmup_steps", "num_warmup_steps", "warmup_iters"), WARMUP),
    **dict.fromkeys(("warmup_ratio", "lr_warmup_fraction"), Meaning(WARMUP.keys, "a number of steps, not a share")),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler", "lr_schedule", "lr_decay_style"), SCHEDULE),
    **dict.fromkeys(("min_lr", "min_lr_ratio", "lr_min", "eta_min"), Meaning(("optimizer.final_ratio",), "a share of "
                    "optimizer.learning_rate")),
    **dict.fromkeys(("batch_size", "train_batch_size", "global_batch_size", "batch", "bs"), BATCH),
    **dict.fromkeys(("micro_batch_size", "per_device_train_batch_size", "train_micro_batch_size_per_gpu",
                     "local_batch_size", "per_gpu_batch_size"), EACH),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum", "accumulate_grad_batches", "grad_accumulation",
                     "gradient_accumulation"), ACCUMULATE),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "max_epochs", "n_epochs", "epoch"), EPOCHS),
    **dict.fromkeys(("max_steps", "train_steps", "num_steps", "training_steps", "iterations", "iters", "train_iters",
                     "max_train_steps", "num_train_steps", "max_iters", "total_steps"), Meaning(("steps",))),
    **dict.fromkeys(("precision", "mixed_precision", "torch_dtype", "param_dtype", "data_type", "amp"), PRECISION),
    **dict.fromkeys(("fp16", "float16", "half"), Meaning(("dtype",), NO_FP16)),
    **dict.fromkeys(("bf16", "bfloat16"), BF16),
    **dict.fromkeys(("fp32", "float32", "tf32"), FP32),
    **dict.fromkeys(("seq_len", "seq_length", "max_seq_length", "max_length", "sequence_length", "context_length",
                     "max_seq_len", "sequence_len", "block_size", "cutoff_len", "max_tokens"), LENGTH),
    **dict.fromkeys(("num_frames", "n_frames", "max_frames", "video_length", "frame_num"), Meaning(("data.frames",))),
    **dict.fromkeys(("resolution", "image_size", "height", "width", "video_size", "img_size"),
                    Meaning(("data.size",), "[height, width]")),
    **dict.fromkeys(("frame_interval", "sample_stride", "frame_stride"), Meaning(("data.stride",))),
    **dict.fromkeys(("dataset", "data_path", "data_dir", "dataset_path", "train_data", "train_data_dir", "data_root",
                     "dataset_dir", "train_file", "datasets"), DATA),
    **dict.fromkeys(("num_workers", "dataloader_num_workers", "workers"), Meaning(("data.workers",))),
    **dict.fromkeys(("output_dir", "out_dir", "output", "save_dir", "logdir", "log_dir", "default_root_dir", "outdir",
                     "output_path", "run_name", "name", "work_dir", "dump_folder"), FOLDER),
    **dict.fromkeys(("save_steps", "save_every", "checkpointing_steps", "save_interval", "checkpoint_interval",
                     "checkpoint_every", "save_freq", "every_n_steps", "save_strategy"), SAVE),
    **dict.fromkeys(("save_total_limit", "checkpoints_total_limit", "keep_last", "keep_latest_k", "save_top_k"), KEEP),
    **dict.fromkeys(("resume", "resume_from_checkpoint", "resume_from", "ckpt_path"), RESUME),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "gradient_clipping", "clip_grad", "gradient_clip_val",
                     "clip_grad_norm", "max_norm", "clip_norm", "clip"), CLIP),
    **dict.fromkeys(("wd", "weight_decay"), Meaning(("optimizer.weight_decay",))),
    **dict.fromkeys(("beta1", "beta2", "adam_beta1", "adam_beta2", "betas"),
                    Meaning(("optimizer.betas",), "both, such as [0.9, 0.95]")),
    **dict.fromkeys(("adam_eps", "adam_epsilon", "epsilon", "eps"), Meaning(("optimizer.eps",))),
    **dict.fromkeys(("ema", "ema_decay", "use_ema", "ema_rate"), Meaning(("optimizer.ema",), "its decay, such as "
                    "0.999; 0 for none")),
    **dict.fromkeys(("optimizer_type", "optim", "optimizer_name"), Meaning(("optimizer.kind",))),
    **dict.fromkeys(("gradient_checkpointing", "activation_checkpointing", "grad_checkpointing", "recompute",
                     "enable_gradient_checkpointing", "recompute_granularity"), RECOMPUTE),
    **dict.fromkeys(("zero_stage", "stage", "deepspeed_stage", "zero_optimization"), Meaning(("zero.stage",))),
    **dict.fromkeys(("deepspeed", "deepspeed_config", "fsdp"), Meaning(("zero.stage", "zero.offload"))),
    **dict.fromkeys(("cpu_offload", "offload", "offload_optimizer", "offload_param"), Meaning(("zero.offload",))),
    **dict.fromkeys(("sequence_parallel_size", "sp_size", "context_parallel_size", "cp_size", "cp", "sp",
                     "sequence_parallel_degree", "context_parallel_degree", "sequence_parallel"), SEQUENCE),
    **dict.fromkeys(("ulysses_degree", "ulysses_size"), Meaning(("mesh.ulysses",))),
    **dict.fromkeys(("ring_degree", "ring_size"), Meaning(("mesh.ring",))),
    **dict.fromkeys(("dp", "dp_size", "data_parallel_size", "data_parallel_degree", "world_size_dp"), REPLICAS),
    **dict.fromkeys(("num_gpus", "gpus", "nproc_per_node", "world_size", "num_processes", "devices", "nnodes",
                     "num_nodes", "n_gpus"), NODES),
    **dict.fromkeys(("random_seed", "manual_seed", "global_seed"), Meaning(("seed",))),
    **dict.fromkeys(("hidden_size", "hidden_dim", "d_model", "n_embd", "embed_dim"), Meaning(("model.dim",))),
    **dict.fromkeys(("num_layers", "n_layer", "num_hidden_layers", "layers", "n_layers"), Meaning(("model.depth",))),
    **dict.fromkeys(("num_heads", "num_attention_heads", "n_head", "n_heads"), Meaning(("model.heads",))),
    **dict.fromkeys(("patch_size", "patchsize"), Meaning(("model.patch",), "(t, y, x), such as [1, 2, 2]")),
    **dict.fromkeys(("vae", "vae_path", "pretrained_vae"), Meaning(("codec.kind", "codec.path"), "kind: diffusers")),
    **dict.fromkeys(("model_name_or_path", "pretrained_model_name_or_path", "model_path", "base_model", "model_name"),
                    Meaning(("model.path",), "with model.kind: video_lm, a folder that transformers saved")),
    **dict.fromkeys(("cfg", "cfg_scale", "guidance_scale"), Meaning(("sample.guidance",))),
    **dict.fromkeys(("num_inference_steps", "sampling_steps", "num_sampling_steps"), Meaning(("sample.steps",))),
    **dict.fromkeys(("validation_prompt", "validation_prompts", "prompt", "prompts"), Meaning(("sample.prompts",))),
    **dict.fromkeys(("cfg_dropout", "caption_dropout", "cond_dropout", "class_dropout_prob", "uncond_prob"),
                    Meaning(("objective.caption_dropout",))),
    **dict.fromkeys(("loss", "loss_type", "prediction_type"), Meaning(("objective.kind",))),
    **dict.fromkeys(("logging_steps", "log_every", "log_interval", "report_to", "use_wandb", "wandb", "log_freq",
                     "tensorboard"), LOGS),
    **dict.fromkeys(("attn_implementation", "use_flash_attn", "flash_attention", "flash_attn"),
                    Meaning(("attention.kernel",))),
    **dict.fromkeys(("compile", "torch_compile", "use_compile"), Meaning(("model.compile",))),
    **dict.fromkeys(("deterministic", "use_deterministic_algorithms"), Meaning(("determinism",), "strict")),
    **dict.fromkeys(("timeout", "nccl_timeout", "ddp_timeout"), Meaning(("restart.collective_timeout_seconds",))),
    **dict.fromkeys(("max_restarts", "max_failures"), Meaning(("restart.max_restarts",))),
}  # fmt: skip

BY_SECTION: dict[str, Meaning] = {  # words whose section says what they mean
    "data.tolerate": Meaning(("data.max_unreadable_samples",)),
    "data.turning": Meaning(("data.rope_scaling",)),
    "restart.hang_seconds": Meaning(("restart.hang_timeout_seconds",)),
    "objective.first_frame": Meaning(("objective.conditioning",), "{first_frame: 0.3}"),
    "objective.silent": Meaning(("objective.silence",)),
    "objective.coded": Meaning(("objective.visual_code",)),
    "objective.caption_drop": Meaning(("objective.caption_dropout",)),
    "data.rope": Meaning(("data.rope_scaling",)),
    "restart.timeout_seconds": Meaning(("restart.collective_timeout_seconds",)),
    "restart.silence_seconds": Meaning(("restart.heartbeat_timeout_seconds",)),
    "restart.patience_seconds": Meaning(("restart.rejoin_timeout_seconds",)),
    "restart.limit": Meaning(("restart.max_restarts",)),
    "guard.limit": Meaning(("guard.max_consecutive",)),
    "checkpoint.to": Meaning(("checkpoint.location",)),
    "checkpoint.wait": Meaning(("checkpoint.blocking",)),
    "model.merge": Meaning(("model.temporal_pool",)),
    "objective.answered": Meaning(("objective.assistant",)),
    "objective.asked": Meaning(("objective.user",)),
    "objective.per": Meaning(("objective.normalize_by",)),
    "objective.share": Meaning(("objective.mask_ratio",)),
    "objective.width": Meaning(("objective.embedding_dim",)),
}

VALUES: dict[str, dict[str, str]] = {  # of a key: what others write, and what to write here
    "dtype": {
        **dict.fromkeys(("fp16", "float16", "half", "16", "16-mixed", "fp16-mixed"), NO_FP16),
        **dict.fromkeys(("bfloat16", "bf16-mixed", "torch.bfloat16"), "bf16"),
        **dict.fromkeys(("fp32", "float", "32", "single", "tf32", "torch.float32"), "float32"),
        **dict.fromkeys(("fp64", "double", "64", "torch.float64"), "float64"),
        **dict.fromkeys(("fp8", "float8", "int8", "fp4", "int4"), "bf16: a run here has no smaller numbers"),
    },
    "device": {
        **dict.fromkeys(("cuda", "gpu", "cuda:0"), "auto: it takes the GPUs where there are any"),
        **dict.fromkeys(("mps", "tpu", "xpu"), "cpu: a run takes NVIDIA GPUs or the CPU"),
    },
    "optimizer.schedule": {
        **dict.fromkeys(("linear", "polynomial"), "wsd: constant, then straight down over the last quarter"),
        **dict.fromkeys(("cosine_with_restarts", "cosine_annealing", "cosineannealinglr"), "cosine"),
        **dict.fromkeys(("constant_with_warmup", "none"), "constant, with optimizer.warmup_steps"),
    },
    "zero.offload": {
        **dict.fromkeys(("true", "cpu"), "optimizer, or parameters (stage 3)"),
        **dict.fromkeys(("false", "none"), "nothing"),
    },
    "attention.kernel": {
        **dict.fromkeys(("flash", "flash_attention_2", "flash_attn", "flash2"), "fa2, or auto, which measures"),
        **dict.fromkeys(("flash_attention_3", "flash3"), "fa3, or auto, which measures"),
        **dict.fromkeys(("sdpa", "eager", "math"), "aten: torch's own"),
    },
}


def meaning_of(key: str) -> Meaning | None:
    """What a key of another system is here, by its section or else its last name; None if nobody knows it.

    Args:
        key: dotted, in any spelling of capitals, with `-` or `_`.
    """
    name = key.strip().lower().replace("-", "_")
    return BY_SECTION.get(name) or ALIASES.get(name.rpartition(".")[2].strip())


def value_of(key: str, value: object) -> str | None:
    """What to write for a value that another system has for the same setting; None if nobody knows it."""
    return VALUES.get(key, {}).get(str(value).strip().lower())
