"""`longreel doctor`: what this machine can run, tried rather than looked up, with a remedy for whatever it cannot.

    check --> Finding(name, ok | note | problem, what was found, what to type)

A note is worth knowing and stops nothing; a problem does. Each check is one small function in `CHECKS`, and none can
take the others with it: an exception becomes its finding. What is noisy or may take the interpreter down when it is
imported (DeepSpeed, Ray) is imported in a child, beside the other checks. The whole takes about 4 s on two cores, half
of it for importing torch; nothing listens beyond loopback and nothing is left behind.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launcher.hardware import cores, gpus, memory

if TYPE_CHECKING:
    import torch
    from packaging.requirements import Requirement
    from rich.table import Table
    from torch import Tensor

HOME = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
GIB = 1 << 30
MEMORY_OF_A_RANK = 600 << 20  # a Ray worker with torch and DeepSpeed takes 500 to 560 MB
OBJECT_STORE = 128 << 20  # of the embedded Ray, in shared memory
OPEN_FILES = 4096
LITTLE_DISK, NO_DISK = 20 * GIB, 1 * GIB
ERRORS = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 3e-2}  # of attention, relative to the largest value
TORCH = "pip install torch==2.13.0, or with GPUs the build that fits their driver: pytorch.org/get-started"
SECONDS = 30.0  # until a child that imports is given up
LINK_SECONDS = 4.0  # until ranks that do not find each other give up
SIGN = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[bold red]problem[/]"}


@dataclass(frozen=True)
class Finding:
    """One thing about this machine.

    Attributes:
        name: what was looked at.
        status: "note" is worth knowing, "problem" stops something.
        found: in figures.
        remedy: what to type or change; empty if there is nothing to do.
    """

    name: str
    status: Literal["ok", "note", "problem"]
    found: str
    remedy: str = ""


def examine(path: Path = Path(".")) -> list[Finding]:
    """Try everything that a run needs.

    Args:
        path: where runs will be written.
    """
    with child_importing("ray", "deepspeed") as child:
        checks: list[tuple[str, Callable[[], Iterable[Finding]], str]] = [
            ("python", _python, "install Python 3.11 or newer"),
            ("packages", _packages, "pip install -e . in the project's folder"),
            ("torch", _torch, TORCH),
            ("gpu", _gpus, "nvidia-smi should list the GPUs: see the driver"),
            ("attention", _attention, "install torch again, or another build of it"),
            ("flash attention", _flash, "train without it: torch's own kernels are used"),
            ("deepspeed", lambda: _deepspeed(child), "pip install 'deepspeed>=0.19'"),
            ("ray", lambda: _ray(child), "pip install 'ray[default,train]>=2.50', or train with --no-ray"),
            ("gloo", _gloo, "is the loopback interface up? ip link set lo up"),
            ("nccl", _nccl, "install a CUDA build of torch"),
            ("video", _video, "pip install 'av>=14,<19'"),
            ("memory", _memory, "give /proc to the container"),
            ("open files", _open_files, f"ulimit -n {16 * OPEN_FILES}"),
            ("disk", lambda: _disk("disk", path, NO_DISK), "give a folder that can be written"),
            (
                "temporary files",
                lambda: _disk("temporary files", Path(tempfile.gettempdir()), 0),
                "export TMPDIR=FOLDER",
            ),
        ]
        return [finding for check in checks for finding in safely(*check)]


def render(findings: Sequence[Finding]) -> Table:
    """For a person."""
    from rich.markup import escape
    from rich.table import Table

    problems, notes = (sum(f.status == status for f in findings) for status in ("problem", "note"))
    said = f"{problems} problem{'s' * (problems != 1)}, {notes} note{'s' * (notes != 1)}"
    table = Table(title="longreel doctor", title_justify="left", caption=said, caption_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("")
    table.add_column("found", overflow="fold")
    for finding in findings:
        remedy = f"\n[bold]remedy:[/] {escape(finding.remedy)}" if finding.remedy else ""
        table.add_row(escape(finding.name), SIGN[finding.status], escape(finding.found) + remedy)
    return table


def as_json(findings: Sequence[Finding]) -> str:
    """For a script."""
    problems = sum(f.status == "problem" for f in findings)
    return json.dumps({"problems": problems, "findings": [asdict(f) for f in findings]}, indent=1)


def safely(name: str, check: Callable[[], Iterable[Finding]], remedy: str) -> list[Finding]:
    """What a check found; an exception is a problem of its own."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries; what matters of them is in the findings
            return list(check())
    except ModuleNotFoundError as error:
        return [Finding(name, "problem", f"needs {error.name}, which is not installed", _install(error.name or ""))]
    except Exception as error:
        return [Finding(name, "problem", _one_line(error), remedy)]


@contextmanager
def child_importing(*modules: str) -> Iterator[subprocess.Popen[str]]:
    """A process that imports modules meanwhile and says how that went; see `imported`."""
    command = [sys.executable, "-P", "-c", IMPORTER, *modules]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


IMPORTER = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        said = ""
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    print("\\nlongreel imported", name, json.dumps(said), flush=True)
"""


def _install(module: str) -> str:
    """How to get a package that is called like its module."""
    if module == "torch":
        return TORCH
    try:
        found = next((str(r) for r in requirements() if r.name == module), module)
    except Exception:  # we are explaining a failure: the list of requirements may be what is broken
        found = module
    return f"pip install '{found}'"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()}, {sys.executable}, {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Finding("python", "problem", found, "install Python 3.11 or newer")
    else:
        yield Finding("python", "ok", found)


def requirements() -> list[Requirement]:
    """What longreel depends on: of pyproject.toml beside the code, else of the installed package."""
    from packaging.requirements import Requirement

    file = HOME / "pyproject.toml"
    if file.is_file():
        lines = tomllib.loads(file.read_text())["project"]["dependencies"]
    else:
        lines = [line for line in importlib.metadata.requires("longreel") or [] if "extra ==" not in line]
    return [Requirement(line) for line in lines]


def _packages() -> Iterator[Finding]:
    """Versions are read from the installed packages' records: nothing is imported."""
    good = []
    for requirement in requirements():
        name, remedy = requirement.name, TORCH if requirement.name == "torch" else f"pip install '{requirement}'"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"package {name}", "problem", f"not installed, needed is {requirement}", remedy)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good.append(f"{name} {version}")
        else:
            found = f"{version}, needed is {requirement.specifier}"
            yield Finding(f"package {name}", "problem", found, remedy)
    if good:
        yield Finding("packages", "ok", ", ".join(good))


def _torch() -> Iterator[Finding]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    native = _bf16_instructions()
    bf16 = f"BF16 by {', '.join(native)}" if native else "BF16 by conversion"
    found = f"{torch.__version__}, {torch.get_num_threads()} threads, {capability}, {bf16}"
    if native or torch.cuda.is_available():
        yield Finding("torch", "ok", found)
    else:
        yield Finding("torch", "note", found, "this CPU has no BF16 arithmetic: dtype: float32 is faster")


def _bf16_instructions() -> list[str]:
    """BF16 matrix instructions of this CPU."""
    try:
        words = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    except OSError:
        return []
    return [name for name in ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16") if name in words]


def _gpus() -> Iterator[Finding]:
    import torch

    seen = gpus()
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            bf16 = "BF16" if torch.cuda.is_bf16_supported() else "no BF16"
            memory = f"{card.total_memory / GIB:.0f} GiB"
            found = f"{card.name}, {memory}, compute {card.major}.{card.minor}, {bf16}, driver {_driver()}"
            yield Finding(f"gpu {number}", "ok", found)
    elif seen:
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        found = f"{seen} NVIDIA GPUs, driver {_driver()}; torch {torch.__version__}, {build}, cannot use them"
        yield Finding("gpu", "problem", found, "install a build of torch that fits the driver: pytorch.org/get-started")
    else:
        yield Finding("gpu", "ok", "none: CPU and gloo, same code path")


def _driver() -> str:
    try:
        found = re.search(r"Module.*?\s(\d+[\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"


def _attention() -> Iterator[Finding]:
    import torch

    for kind in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        said, wrong = [], False
        for name, limit in ERRORS.items():
            try:
                kernel, error = attention_error(torch.device(kind), getattr(torch, name))
            except Exception as failure:
                said.append(f"{name} fails with {_one_line(failure)}")
                wrong = True
            else:
                said.append(f"{name} by {kernel} {error:.0e}")
                wrong |= not error <= limit
        found = f"furthest from a dense reference, forward and backward: {', '.join(said)}"
        remedy = "install torch again, or another build of it; float32 is the safest dtype" if wrong else ""
        yield Finding(f"attention on {kind}", "problem" if wrong else "ok", found, remedy)


def attention_error(device: torch.device, dtype: torch.dtype) -> tuple[str, float]:
    """Our kernel's name, and how far its output and gradients are from dense attention in float64, relative to the
    largest value; full with more keys than rows, and causal, with two query heads to a key head.
    """
    import numpy as np
    import torch

    from parallel.kernel import kernel_for
    from parallel.launch import Launch, Rows
    from parallel.rectangles import CAUSAL, FULL

    kernel, worst = kernel_for(device, dtype), 0.0
    draw = torch.Generator().manual_seed(0)
    for rows, keys, causal in ((33, 47, False), (33, 33, True)):
        shapes = ((rows, 4), (keys, 2), (keys, 2), (rows, 4))
        q, k, v, grad = (torch.randn(n, h, 16, generator=draw).to(device, dtype) for n, h in shapes)
        whole = [Rows(np.array([0]), np.array([n])) for n in (rows, keys)]
        launch = Launch(CAUSAL if causal else FULL, whole[0], whole[1], fresh=True)
        ((_, out, lse),) = kernel.forward(q, k, v, launch, 0.25)
        ((_, dq, _, dk, dv),) = kernel.backward(grad, q, k, v, out, lse, launch, 0.25)
        ours = (out, dq, dk, dv)
        for mine, right in zip(ours, _dense(q, k, v, grad, causal, 0.25), strict=True):
            worst = max(worst, float((mine.double() - right).abs().max() / right.abs().max()))
    return type(kernel).__name__, worst


def _dense(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, causal: bool, scale: float) -> tuple[Tensor, ...]:
    """Output and gradients of plain softmax attention in float64, by autograd."""
    import torch

    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(groups, dim=1)) * scale
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    out = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v.repeat_interleave(groups, dim=1))
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), grad.double()))


def _flash() -> Iterator[Finding]:
    import torch
    import torch.nn.attention

    there = {name: _version(name) for name in ("flash-attn", "flash-attn-3", "flash-attn-4") if _version(name)}
    known: list[str] = getattr(torch.nn.attention, "list_flash_attention_impls", list)()
    packages = ", ".join(f"{name} {version}" for name, version in there.items()) or "no flash-attn package"
    found = f"{packages}; torch can switch to {', '.join(known) or 'none'}"
    if not torch.cuda.is_available():
        yield Finding("flash attention", "ok", f"{found}; without a GPU torch's own CPU kernel is used")
    elif torch.cuda.get_device_capability()[0] >= 9 and not there.keys() - {"flash-attn"}:
        remedy = "FA3 or FA4 is faster on this GPU: pip install --pre flash-attn-4"
        yield Finding("flash attention", "note", found, remedy)
    else:
        yield Finding("flash attention", "ok", found)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def imported(child: subprocess.Popen[str], module: str) -> str:
    """How the child's import of a module went: empty if well."""
    try:
        out, errors = child.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"import {module} takes more than {SECONDS:g} s"
    answer = f"longreel imported {module} "
    for line in out.splitlines():
        if line.startswith(answer):
            return str(json.loads(line.removeprefix(answer)))
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), "no word")
    return f"import {module} ended the process (exit code {child.returncode}): {last[:300]}"


def _deepspeed(child: subprocess.Popen[str]) -> Iterator[Finding]:
    wrong = _import_wrong(child, "deepspeed")
    if wrong:
        yield Finding("deepspeed", "problem", wrong, _install("deepspeed"))
    else:
        yield Finding("deepspeed", "ok", f"{_version('deepspeed')} imports; ZeRO 0 to 3 compile nothing")


def _ray(child: subprocess.Popen[str]) -> Iterator[Finding]:
    """Ray is not started: that takes seconds, and `longreel train` says at once if it fails."""
    wrong = _import_wrong(child, "ray")
    if wrong:
        yield Finding("ray", "problem", wrong, f"{_install('ray')}, or train with --no-ray")
        return
    missing = [path for path in _ray_servers() if not os.access(path, os.X_OK)]
    if missing:
        found = f"{_version('ray')}, but {missing[0]} cannot be run"
        yield Finding("ray", "problem", found, "pip install --force-reinstall 'ray[default,train]'")
        return
    shared, (_, free) = _free(Path("/dev/shm")), memory()
    found = f"{_version('ray')}, embedded Ray can start: {_gib(shared)} shared memory, {_gib(free)} memory free"
    if shared < OBJECT_STORE:
        remedy = "more shared memory, else Ray uses slower files: docker run --shm-size=1g"
        yield Finding("ray", "note", found, remedy)
    else:
        yield Finding("ray", "ok", found)


def _import_wrong(child: subprocess.Popen[str], module: str) -> str:
    if importlib.util.find_spec(module) is None:
        return f"needs {module}, which is not installed"
    return imported(child, module)


def _ray_servers() -> list[Path]:
    """The programs that `ray.init` starts."""
    spec = importlib.util.find_spec("ray")
    assert spec, "it was imported"
    core = Path(spec.origin or "").parent / "core" / "src" / "ray"
    return [core / "gcs" / "gcs_server", core / "raylet" / "raylet"]


def _gloo() -> Iterator[Finding]:
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_gloo_available()):
        yield Finding("gloo", "problem", "this torch is built without it", "install another build of torch")
        return
    sums = gloo_sums()
    if sums == [3.0, 3.0]:
        yield Finding("gloo", "ok", "two ranks add up over loopback")
    else:
        found = f"two ranks over loopback got {sums} for 1 + 2, within {LINK_SECONDS:g} s"
        yield Finding("gloo", "problem", found, "is the loopback interface up? ip link set lo up")


def gloo_sums() -> list[float | str]:
    """What each of two ranks gets for 1 + 2: threads of this process, through real sockets of 127.0.0.1."""
    import torch
    import torch.distributed

    distributed: Any = torch.distributed  # these classes are there, but not in its stubs
    gloo, store = distributed.ProcessGroupGloo, distributed.HashStore()
    sums: list[float | str] = ["no answer", "no answer"]

    def work(rank: int) -> None:
        try:
            options = gloo._Options()
            options._devices = [gloo.create_device(hostname="127.0.0.1")]
            options._timeout = timedelta(seconds=LINK_SECONDS)
            number = torch.tensor([rank + 1.0])
            gloo(store, rank, 2, options).allreduce([number]).wait()
            sums[rank] = float(number)
        except Exception as error:
            sums[rank] = _one_line(error)

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LINK_SECONDS)
    return sums


def _nccl() -> Iterator[Finding]:
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():
        return
    if dist.is_nccl_available():
        yield Finding("nccl", "ok", ".".join(str(n) for n in torch.cuda.nccl.version()))
    else:
        yield Finding("nccl", "problem", "this torch is built without it", "install a CUDA build of torch")


def _video() -> Iterator[Finding]:
    import av
    import numpy as np

    from data.video import decode, encode

    across = np.linspace(40, 200, 64)
    frames = np.stack([np.stack([across + i, across[::-1], across], -1) for i in range(8)]).astype(np.uint8)
    frames = frames[:, None].repeat(64, axis=1)  # [frames, height, width, 3]
    back = decode(encode(frames, Fraction(8)))
    if back.shape != frames.shape:
        raise ValueError(f"H.264: {frames.shape} came back as {back.shape}")
    off = float(np.abs(back.astype(float) - frames).mean())
    found = f"PyAV {av.__version__}, H.264 there and back is off by {off:.1f} of 255"
    av1 = [name for name in ("libdav1d", "libaom-av1") if name in av.codecs_available]
    if off > 8:
        yield Finding("video", "problem", found, "pip install --force-reinstall av")
    elif not av1:
        yield Finding("video", "note", f"{found}; AV1 cannot be decoded", "pip install --force-reinstall av")
    else:
        yield Finding("video", "ok", f"{found}; AV1 is decoded by {av1[0]}")


def _memory() -> Iterator[Finding]:
    total, free = memory()
    found = f"{_gib(free)} of {_gib(total)} free, {cores()} cores"
    if free < MEMORY_OF_A_RANK:
        remedy = f"a rank takes {MEMORY_OF_A_RANK >> 20} MiB before the model: end other programs"
        yield Finding("memory", "problem", found, remedy)
    elif free < MEMORY_OF_A_RANK * cores():
        yield Finding("memory", "note", found, f"room for {free // MEMORY_OF_A_RANK} ranks before the model")
    else:
        yield Finding("memory", "ok", found)


def _open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        yield Finding("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft:,}")
        return
    highest = 16 * OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, 16 * OPEN_FILES)
    remedy = f"ulimit -n {highest}" if highest >= OPEN_FILES else "raise nofile in /etc/security/limits.conf"
    yield Finding("open files", "note", f"at most {soft:,}; Ray and many shards take more", remedy)


def _disk(name: str, path: Path, enough: int) -> Iterator[Finding]:
    """`enough`: bytes below which nothing works; 0 if little room is never a problem."""
    path = path.absolute()
    there = next(p for p in (path, *path.parents) if p.exists())
    free = _free(there)
    found = f"{_gib(free)} free in {there}"
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding(name, "problem", f"{there} cannot be written", f"chmod u+w {there}, or another folder")
    elif free < enough:
        yield Finding(name, "problem", found, "make room: a checkpoint takes 12 bytes a parameter")
    elif free < (LITTLE_DISK if enough else NO_DISK):
        yield Finding(name, "note", found, "make room: a checkpoint takes 12 bytes a parameter")
    else:
        yield Finding(name, "ok", found)


def _free(path: Path) -> int:
    return shutil.disk_usage(path).free if path.exists() else 0


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
