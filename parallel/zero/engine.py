"""ZeRO: one step of training over all ranks, at stage 0 (ours) or 1 to 3 (DeepSpeed), behind one `Engine`.

The contract that makes every mesh, micro-step count and stage agree: the losses given to `backward`, summed over all
ranks and micro-steps, are the loss of the step. So gradients are *summed* over ranks, whatever the ranks share: a
replica's ranks each hold a part of the same sequence, and replicas hold different ones.

Stage 0 is a plain engine in the dtype of the run, the float64 reference. DeepSpeed refuses float64 gradients at stage
0 and keeps float32 masters at 1 to 3, which agree with the reference to float32 accuracy.

A module whose parameters are on the meta device is given memory parameter by parameter, and at stage 3 each is cut
before the next one is made:

    with on_meta():  shapes alone  --engine_for-->  [ p0 whole ] cut  [ p1 whole ] cut ...  --weights--> `held`

so that a rank never holds more of the model than its part and one parameter.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from parallel.errors import InputError

STATE_NAMES = ("master", "exp_avg", "exp_avg_sq")  # what AdamW knows of a parameter
Offload = Literal["nothing", "optimizer", "parameters"]
BUCKET, BUCKET_CPU = 10**8, 5 * 10**8  # most elements of gradients that DeepSpeed sums at a time
NORM_ROW = 1024  # of so many numbers the norm is summed in their own precision, of those sums in float64


@dataclass(frozen=True)
class AdamW:
    """Loshchilov & Hutter, arXiv:1711.05101; weight decay on matrices only; gradients clipped to a global norm.

    `clip` 0 leaves gradients as they are.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0

    def groups(self, parameters: Iterable[Tensor]) -> list[dict[str, Any]]:
        """Parameter groups for torch: matrices decay, vectors do not."""
        every = list(parameters)
        groups = [
            {"params": [p for p in every if len(shape_of(p)) >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in every if len(shape_of(p)) < 2], "weight_decay": 0.0},
        ]
        return [g for g in groups if g["params"]]

    def build(self, groups: list[dict[str, Any]]) -> _Guarded:
        """The torch optimiser of these groups; its learning rate is set at every step."""
        return _Guarded(groups, lr=0.0, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True)
class Fragment:
    """What a rank holds of one parameter: some elements of it, in the order of the flattened parameter.

    Attributes:
        name: of the parameter.
        start: first element.
        tensors: [elements] by `STATE_NAMES`, the engine's own memory: writing to them changes the engine.
    """

    name: str
    start: int
    tensors: dict[str, Tensor]

    @property
    def stop(self) -> int:
        """After the last element."""
        return self.start + len(self.tensors["master"])

    def cut(self, start: int, stop: int) -> Fragment:
        """The same of elements [start, stop)."""
        tensors = {key: t[start - self.start : stop - self.start] for key, t in self.tensors.items()}
        return Fragment(self.name, start, tensors)


class Engine(Protocol):
    """A model with its optimiser, spread over all ranks. `forward` to `refresh` and `destroy` are collective."""

    module: nn.Module

    def forward(self, *args: Any) -> Any:
        """The model's forward."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, this rank's part of one micro-step of the step's loss."""

    def step(self, learning_rate: float, most: float = math.inf) -> float:
        """Update from the gradients of the micro-steps so far; gives their global norm before clipping.

        There is no update, and the gradients are dropped, if the norm is more than `most` or not a number. A norm that
        is not finite may be given as infinite.
        """

    def held(self) -> list[Fragment]:
        """All state on this rank, in the model's order. Valid as long as the engine is."""

    def owned(self) -> list[Fragment]:
        """What of `held` this rank answers for: over all ranks, every element of every parameter once."""

    def frozen(self) -> list[Fragment]:
        """What lies on this rank of parameters that are not trained: "master" alone, in the model's own dtype."""

    def refresh(self, updates: int) -> None:
        """Make model and optimiser follow what was written to `held`, the state after `updates` steps."""

    def destroy(self) -> None:
        """Free buffers and hooks; the engine is of no use afterwards."""


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules made within have shapes and dtypes of parameters, and no numbers; their buffers are real.

    Parameters stay tied, which `accelerate.init_empty_weights` undoes; a device context makes buffers empty as well.
    """

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None  # as it is
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    register: Any = register_module_parameter_registration_hook  # its type forgets that a hook may give another
    hook = register(without_memory)
    try:
        yield
    finally:
        hook.remove()


def engine_for(
    module: nn.Module,
    adam: AdamW,
    stage: int,
    micro_steps: int,
    offload: Offload = "nothing",
    device: torch.device | None = None,
) -> Engine:
    """The engine of a ZeRO stage; torch.distributed is up.

    Args:
        module: the whole model, the same on every rank; or one made in `on_meta`, whose numbers are then not a number
            until they are written to `held`.
        adam: optimiser settings.
        stage: 0 to 3.
        micro_steps: calls of `backward` in one step.
        offload: what lies in the memory of the host instead of the device: the optimiser's state, of stages 1 to 3, or
            that and the parameters, of stage 3.
        device: where a module made in `on_meta` gets its memory; the CPU unless told. Another stays where it is.

    Raises:
        InputError: the stage cannot offload that.
    """
    refuse_offload(stage, offload)
    device = device or torch.device("cpu")
    if stage == 0:
        give_memory(module, device)
        return PlainEngine(module, adam)
    return DeepSpeedEngine(module, adam, stage, micro_steps, offload, device)


def give_memory(module: nn.Module, device: torch.device, cut: Callable[[nn.Parameter], object] | None = None) -> None:
    """Replace parameters on the meta device by real ones, of which no number is a number; buffers move along.

    Args:
        module: if none of its parameters is on the meta device, nothing happens.
        device: of all; a dry run's device is "meta" itself.
        cut: takes a whole parameter's part for this rank and lets go of the rest, which is then the next one's room.
    """
    empty = [parameter for parameter in module.parameters() if parameter.is_meta]
    if not empty:
        return
    most = max(parameter.numel() for parameter in empty) if cut else 0
    shared = {p.dtype: torch.full((most,), math.nan, dtype=p.dtype, device=device) for p in empty}
    known: dict[nn.Parameter, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter.is_meta and parameter not in known:
                room = shared[parameter.dtype]
                numbers = room[: parameter.numel()] if cut else room.new_full((parameter.numel(),), math.nan)
                known[parameter] = nn.Parameter(numbers.view(parameter.shape), parameter.requires_grad)
                if cut is not None:
                    cut(known[parameter])
            setattr(owner, name, known.get(parameter, parameter))  # tied ones stay tied
        for name, buffer in list(owner.named_buffers(recurse=False)):
            assert not buffer.is_meta or device.type == "meta", (
                f"buffer {name} has no numbers, and no file has them: make the module in on_meta"
            )
            setattr(owner, name, buffer.to(device))


def refuse_offload(stage: int, offload: Offload) -> None:
    """What a stage can offload.

    Raises:
        InputError: it cannot.
    """
    least = {"nothing": 0, "optimizer": 1, "parameters": 3}[offload]
    if stage < least:
        rule = f"ZeRO offloads {offload} from stage {least} on"
        raise InputError(rule, f"zero.stage={stage}, zero.offload={offload}", f"zero.stage={least}")


class PlainEngine:
    """Stage 0: every rank holds everything; gradients are summed in the dtype of the masters."""

    def __init__(self, module: nn.Module, adam: AdamW) -> None:
        self.module, self.adam = module, adam
        self.parameters = trained(module)
        exact = {n: torch.float64 if p.dtype == torch.float64 else torch.float32 for n, p in self.parameters.items()}
        self.masters = {n: p.detach().to(exact[n]) for n, p in self.parameters.items()}  # shares memory if no cast
        dtypes = set(exact.values())
        assert len(dtypes) == 1, f"parameters of several exact dtypes: {dtypes}"
        sizes = [p.numel() for p in self.parameters.values()]
        rows = -(-sum(sizes) // NORM_ROW)
        self.flat_gradient = torch.zeros(rows * NORM_ROW, dtype=dtypes.pop(), device=next(module.parameters()).device)
        views = self.flat_gradient[: sum(sizes)].split(sizes)
        self.gradients = {n: v.view_as(p) for v, (n, p) in zip(views, self.parameters.items(), strict=True)}
        self.optimizer = adam.build(adam.groups(self.masters.values()))
        self.forward = module.forward
        self.cast = [n for n, p in self.parameters.items() if p.dtype != exact[n]]
        for name, master in self.masters.items():
            master.grad = self.gradients[name]
            if name not in self.cast:
                self.parameters[name].grad = self.gradients[name]  # backward adds into the flat gradient itself

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        loss.backward()
        for name in self.cast:
            parameter = self.parameters[name]
            assert parameter.grad is not None, f"{name} took no part in the loss: the ranks of ZeRO-3 would hang"
            self.gradients[name] += parameter.grad
            parameter.grad = None

    def step(self, learning_rate: float, most: float = math.inf) -> float:
        """See `Engine`."""
        if dist.get_world_size() > 1:
            dist.all_reduce(self.flat_gradient)
        rows = torch.linalg.vector_norm(self.flat_gradient.view(-1, NORM_ROW), dim=1)
        norm = float(torch.linalg.vector_norm(rows, dtype=torch.float64))
        if 0 < self.adam.clip < norm:
            self.flat_gradient *= self.adam.clip / (norm + 1e-6)  # as torch and DeepSpeed do
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if norm <= most:
            self.optimizer.step()
            self._masters_to_model()
        self.flat_gradient.zero_()
        return norm

    def held(self) -> list[Fragment]:
        """See `Engine`."""
        found = []
        for name, master in self.masters.items():
            if not self.optimizer.state[master]:  # before the first step
                moments = {key: torch.zeros_like(master) for key in STATE_NAMES[1:]}
                self.optimizer.state[master] = {"step": updates_beside(master, 0), **moments}
            state = {"master": master.detach(), **self.optimizer.state[master]}
            found.append(Fragment(name, 0, {key: state[key].view(-1) for key in STATE_NAMES}))
        return found

    def owned(self) -> list[Fragment]:
        """See `Engine`. As all ranks hold the same, each answers for as many elements."""
        return _share(self.held(), dist.get_rank(), dist.get_world_size())

    def frozen(self) -> list[Fragment]:
        """See `Engine`."""
        return _whole_frozen(self.module)

    def refresh(self, updates: int) -> None:
        """See `Engine`."""
        for master, state in self.optimizer.state.items():
            state["step"] = updates_beside(master, updates)
        self._masters_to_model()

    def destroy(self) -> None:
        """See `Engine`."""

    @torch.no_grad()
    def _masters_to_model(self) -> None:
        for name in self.cast:
            self.parameters[name].copy_(self.masters[name])


class _Guarded(torch.optim.AdamW):
    """AdamW that makes no update while `may` says so: DeepSpeed knows the norm only between its sum and the update."""

    may: Callable[[], bool] = staticmethod(lambda: True)

    def step(self, closure: Any = None) -> Any:
        """As torch does, or nothing."""
        return super().step(closure) if self.may() else None


class DeepSpeedEngine:
    """Stages 1 to 3, over all ranks as one data-parallel world; sequence ranks need no special treatment."""

    def __init__(
        self,
        module: nn.Module,
        adam: AdamW,
        stage: int,
        micro_steps: int,
        offload: Offload,
        device: torch.device,
    ) -> None:
        first = next(module.parameters())
        deepspeed = _deepspeed(device if first.is_meta else first.device)
        self.module, self.stage = module, stage
        self.scale = float(dist.get_world_size() * micro_steps)  # DeepSpeed divides by both
        elements = sum(parameter.numel() for parameter in trained(module).values())
        kind = (device if first.is_meta else first.device).type
        config = _deepspeed_config(first.dtype, adam, stage, micro_steps, offload, elements, kind)
        double = first.dtype == torch.float64
        dtype = torch.float32 if double else None  # left to itself, initialize() takes the model's and refuses it

        def cut(whole: nn.Module) -> None:
            deepspeed.zero.Init(module=whole, config_dict_or_path=config, dtype=dtype)

        give_memory(module, device, (lambda made: cut(nn.ParameterList([made]))) if stage == 3 else None)
        if stage == 3 and double:
            cut(module)
        groups = adam.groups(trained(module).values())
        guarded, self.most = adam.build(groups), math.inf
        guarded.may = lambda: self._norm() <= self.most
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=guarded,
            model_parameters=groups,
            dist_init_required=False,
            config=config,
        )
        self.forward = self.engine.forward

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        self.engine.backward(loss * self.scale)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # counts the micro-step

    def step(self, learning_rate: float, most: float = math.inf) -> float:
        """See `Engine`."""
        self.most = most
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        assert self.engine.is_gradient_accumulation_boundary(), "fewer micro-steps than the engine was made for"
        self.engine.step()
        return self._norm()

    def _norm(self) -> float:
        """Of the gradients that the optimiser is about to use, or used last; DeepSpeed says -1 for not finite."""
        norm = float(self.optimizer._global_grad_norm)
        return norm if norm >= 0 else math.inf

    def held(self) -> list[Fragment]:
        """See `Engine`."""
        if not self.optimizer.optimizer.state:  # before the first step
            self._make_moments()
        self._link_moments()
        of = self._partition if self.stage == 3 else self._fragment
        found = [of(name, parameter) for name, parameter in trained(self.module).items()]
        return [fragment for fragment in found if fragment is not None]

    def owned(self) -> list[Fragment]:
        """See `Engine`. No two ranks hold the same."""
        return self.held()

    def frozen(self) -> list[Fragment]:
        """See `Engine`."""
        if self.stage < 3:
            return _whole_frozen(self.module)
        found = []
        for name, parameter in self.module.named_parameters():
            size = getattr(parameter, "ds_tensor", parameter).numel()
            start = size * dist.get_rank()
            numel = min(size, getattr(parameter, "ds_numel", size) - start)
            if not parameter.requires_grad and numel > 0:
                found.append(Fragment(name, start, {"master": parameter.ds_tensor.data[:numel]}))  # type: ignore[attr-defined]
        return found

    def refresh(self, updates: int) -> None:
        """See `Engine`."""
        if self.stage < 3:
            self.optimizer.update_lp_params()
        else:
            parameters: dict[str, Any] = trained(self.module)
            for fragment in self.held():  # the model's own copy does not follow by itself
                master = fragment.tensors["master"]
                parameters[fragment.name].ds_tensor.data[: len(master)].copy_(master)
        for partition, moments in self.optimizer.optimizer.state.items():
            moments["step"] = updates_beside(partition, updates)

    def _fragment(self, name: str, parameter: Any) -> Fragment | None:
        """Stages 1 and 2: the stretch of a parameter that lies in this rank's part of the flattened group."""
        found = parameter._hp_mapping
        if found is None:
            return None
        tensors = {"master": found.get_hp_fragment(), **{k: found.get_hp_fragment(k) for k in STATE_NAMES[1:]}}
        return Fragment(name, found.lp_fragment_address.start, {k: t.detach() for k, t in tensors.items()})

    def _partition(self, name: str, parameter: Any) -> Fragment | None:
        """Stage 3: this rank's part of each parameter, without the padding at the end."""
        size = parameter.ds_tensor.numel()
        start = size * dist.get_rank()
        numel = min(size, parameter.ds_numel - start)
        if numel <= 0:
            return None
        tensors = {}
        for key in STATE_NAMES:  # `safe_get_local_*` may give a copy, and fails to write where the size does not divide
            of_optimizer = None if key == "master" else key
            whole, _ = self.optimizer._get_fp32_opt_state_partition(parameter, False, of_optimizer)
            tensors[key] = whole.detach()[:numel]
        return Fragment(name, start, tensors)

    def destroy(self) -> None:
        """See `Engine`."""
        self.engine.destroy()

    def _link_moments(self) -> None:
        """Tell parameters where their moments are.

        DeepSpeed 0.19 does so after the first *group* has stepped, when the later groups have no moments yet, and
        never again: their moments could not be read.
        """
        if self.stage < 3:
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _make_moments(self) -> None:
        """Give the optimiser the state that it would make at its first step, to be overwritten."""
        names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
        name = next(n for n in names if hasattr(self.optimizer, n))  # of stage 3, of 1 and 2, of 1 in bf16
        for partition in getattr(self.optimizer, name):
            moments = {key: torch.zeros_like(partition.data) for key in STATE_NAMES[1:]}
            self.optimizer.optimizer.state[partition] = {"step": updates_beside(partition, 0), **moments}


def updates_beside(parameter: Tensor, updates: int) -> Tensor:
    """How many updates a parameter's moments have seen, as AdamW keeps it in "step".

    It lies on the device of the parameter: the fused kernel of a GPU reads it there, and refuses one on the CPU.
    """
    return torch.tensor(float(updates), dtype=torch.float32, device=parameter.device)


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are not frozen, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _whole_frozen(module: nn.Module) -> list[Fragment]:
    names = [(name, p) for name, p in module.named_parameters() if not p.requires_grad]
    return [Fragment(name, 0, {"master": parameter.data.view(-1)}) for name, parameter in names]


def _share(fragments: Sequence[Fragment], rank: int, ranks: int) -> list[Fragment]:
    """Elements laid end to end and cut into as many equal stretches as there are ranks: that of `rank`."""
    total = sum(f.stop - f.start for f in fragments)
    first, last = total * rank // ranks, total * (rank + 1) // ranks
    found, before = [], 0
    for fragment in fragments:
        size = fragment.stop - fragment.start
        start, stop = max(first - before, 0), min(last - before, size)
        if start < stop:
            found.append(fragment.cut(fragment.start + start, fragment.start + stop))
        before += size
    return found


def shape_of(parameter: Tensor) -> torch.Size:
    """The whole shape, also of a parameter that ZeRO-3 has cut."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _deepspeed(device: torch.device) -> Any:
    """The package, imported for this kind of device and without a word.

    At import it looks which of its operators could be compiled, and prints a line for each that could not, in every
    process; none of them is used here. Its warnings, such as "no GPU found", are no news on a laptop.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    with redirect_stdout(io.StringIO()):
        import deepspeed
        import deepspeed.ops
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled, for 41 s, where a compiler is
    _read_norms_once()
    return deepspeed


def _read_norms_once() -> None:
    """Let the host read the global norm of the gradients once a step.

    DeepSpeed keeps it on the device and asks it again and again, whether it is finite, whether to clip, and the host
    waits for the device each time. So what computes it hands it over as a number of the host.
    """
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    names = ((stage3, "combine_grad_norm_groups"), (stage_1_and_2, "combine_grad_norm_groups"))
    for module, name in (*names, (bf16_optimizer, "get_global_norm_of_tensors")):
        compute = getattr(module, name)
        if not isinstance(compute, _OnHost):
            setattr(module, name, _OnHost(compute))


class _OnHost:
    """A function whose result comes to the host."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **more: Any) -> Any:
        found = self.function(*args, **more)
        return found.cpu() if isinstance(found, Tensor) else found


def _deepspeed_config(
    dtype: torch.dtype, adam: AdamW, stage: int, micro_steps: int, offload: Offload, elements: int, device: str
) -> dict[str, Any]:
    """Settings of DeepSpeed.

    Args:
        dtype: of the model.
        adam: gives the norm to clip to.
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
        "gradient_clipping": adam.clip,  # 1.0 unless told otherwise
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
        config["bf16"] = {"enabled": True, "check_grad_overflow": False}  # the norm says so: see `_norm`
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"  # sums over ranks would lose digits in bf16
    return config
