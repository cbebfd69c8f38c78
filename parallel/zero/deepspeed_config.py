"""Settings of DeepSpeed for a model, a ZeRO stage and a device; and what a stage can put into the host's memory."""

from __future__ import annotations

from typing import Any, Literal

import torch

from parallel.errors import InputError

Offload = Literal["nothing", "optimizer", "parameters"]
BUCKET, BUCKET_CPU = 10**8, 5 * 10**8  # most elements of gradients that DeepSpeed sums at a time


def refuse_offload(stage: int, offload: Offload) -> None:
    """What a stage can offload.

    Raises:
        InputError: it cannot.
    """
    first = {"nothing": 0, "optimizer": 1, "parameters": 3}[offload]
    if stage < first:
        rule = f"ZeRO offloads {offload} from stage {first} on"
        raise InputError(rule, f"zero.stage={stage}, zero.offload={offload}", f"zero.stage={first}")


def deepspeed_config(
    dtype: torch.dtype, clip: float, stage: int, micro_steps: int, offload: Offload, elements: int, device: str
) -> dict[str, Any]:
    """Settings of DeepSpeed.

    Args:
        dtype: of the model.
        clip: largest global norm of the gradient; 0 never clips.
        stage: 1 to 3.
        micro_steps: of a step.
        offload: see `engine_for`.
        elements: that are trained.
        device: "cuda" or "cpu"; or "meta", which stands for a GPU in a dry run, without its streams and pinned memory.
    """
    zero: dict[str, Any] = {
        "stage": stage,
        # Stage 3 gathers on a stream of its own, while the layer before computes. The CPU has no streams.
        "overlap_comm": stage == 3 and device == "cuda",
        "stage3_param_persistence_threshold": 0,
        # Memory of so many elements is taken at once, several times: no more than the model has. One bucket for all
        # of a model on a CPU, because sums over more than two ranks depend on where buckets end.
        "reduce_bucket_size": max(1, min(elements, BUCKET_CPU if device == "cpu" else BUCKET)),
    }
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": clip,  # 1.0 unless told otherwise
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": False},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU twice a micro-step
    }
    host = {"device": "cpu", "pin_memory": device == "cuda"}
    if offload != "nothing":
        zero["offload_optimizer"] = host
    if offload == "parameters":
        zero["offload_param"] = host
    if dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True, "check_grad_overflow": False}  # the norm says so: see `DeepSpeedEngine`
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"  # sums over ranks would lose digits in bf16
    return config
