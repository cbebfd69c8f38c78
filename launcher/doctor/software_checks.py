"""What a run's software can do here: Python, packages, torch, DeepSpeed, Ray, ranks that meet, videos."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

from launcher.cluster.connection import asks_for_token, resolved
from launcher.cluster.ray_token import ASK_FOR_IT, OPEN_CLUSTER, open_to_others, token_file
from launcher.core.hardware import memory
from launcher.doctor import finding
from launcher.doctor.finding import TORCH, Finding, gib, import_wrong, install, one_line, version
from launcher.doctor.machine_checks import free_bytes
from parallel import shell
from parallel.errors import InputError

OLDEST_PYTHON = (3, 11)
OBJECT_STORE = 128 << 20  # of the embedded Ray, in shared memory
LINK_SECONDS = 4.0  # until ranks that do not find each other give up


def python() -> Iterator[Finding]:
    """New enough."""
    found = f"{platform.python_version()}, {sys.executable}, {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Finding("python", "problem", found, "install Python 3.11 or newer")
    else:
        yield Finding("python", "ok", found)


def packages() -> Iterator[Finding]:
    """Versions are read from the installed packages' records: nothing is imported."""
    good = []
    for requirement in finding.requirements():
        name, remedy = requirement.name, TORCH if requirement.name == "torch" else f"pip install '{requirement}'"
        try:
            there = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"package {name}", "problem", f"not installed, needed is {requirement}", remedy)
            continue
        if requirement.specifier.contains(there, prereleases=True):
            good.append(f"{name} {there}")
        else:
            found = f"{there}, needed is {requirement.specifier}"
            yield Finding(f"package {name}", "problem", found, remedy)
    if good:
        yield Finding("packages", "ok", ", ".join(good))


def torch_build() -> Iterator[Finding]:
    """Its build, and what this CPU has of bf16."""
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


def deepspeed(child: subprocess.Popen[str]) -> Iterator[Finding]:
    """It imports."""
    wrong = import_wrong(child, "deepspeed")
    if wrong:
        yield Finding("deepspeed", "problem", wrong, install("deepspeed"))
    else:
        yield Finding("deepspeed", "ok", f"{version('deepspeed')} imports; ZeRO 0 to 3 compile nothing")


def ray(child: subprocess.Popen[str]) -> Iterator[Finding]:
    """Ray is not started: that takes seconds, and `longreel train` says at once if it fails."""
    wrong = import_wrong(child, "ray")
    if wrong:
        yield Finding("ray", "problem", wrong, f"{install('ray')}, or train with --no-ray")
        return
    missing = [path for path in _ray_servers() if not os.access(path, os.X_OK)]
    if missing:
        found = f"{version('ray')}, but {missing[0]} cannot be run"
        yield Finding("ray", "problem", found, "pip install --force-reinstall 'ray[default,train]'")
        return
    shared, (_, free) = free_bytes(Path("/dev/shm")), memory()
    found = f"{version('ray')}, embedded Ray can start: {gib(shared)} shared memory, {gib(free)} memory free"
    if shared < OBJECT_STORE:
        remedy = "more shared memory, else Ray uses slower files: docker run --shm-size=1g"
        yield Finding("ray", "note", found, remedy)
    else:
        yield Finding("ray", "ok", found)


def ray_token() -> Iterator[Finding]:
    """Who can read the token, and whether the cluster that this machine belongs to asks for it."""
    mode, file = open_to_others(os.environ), token_file(os.environ)
    if mode:
        found = f"others on this machine can read {file} (mode {mode:04o}), and run code with it"
        yield Finding("ray token", "problem", found, shell.join(["chmod", "600", str(file)]))
    head = head_here()
    if head is not None and not asks_for_token(head):
        found = f"the Ray cluster of this machine, {head}, asks nobody for a token: {OPEN_CLUSTER}"
        yield Finding("ray token", "problem", found, ASK_FOR_IT)
    elif not mode:
        yield Finding("ray token", "ok", f"{head} asks for it" if head is not None else "no Ray cluster runs here")


def head_here() -> str | None:
    """host:port of the head of the cluster that this machine is a node of, if it answers."""
    try:
        address = resolved("auto")
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=LINK_SECONDS).close()
    except (InputError, OSError, ValueError, OverflowError):
        return None
    return address


def _ray_servers() -> list[Path]:
    """The programs that `ray.init` starts."""
    spec = importlib.util.find_spec("ray")
    assert spec, "it was imported"
    core = Path(spec.origin or "").parent / "core" / "src" / "ray"
    return [core / "gcs" / "gcs_server", core / "raylet" / "raylet"]


def gloo() -> Iterator[Finding]:
    """Two ranks meet over loopback."""
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
            sums[rank] = one_line(error)

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LINK_SECONDS)
    return sums


def video() -> Iterator[Finding]:
    """H.264 there and back, and whether AV1 is decoded."""
    import av
    import numpy as np

    from data.media.video import decode, encode

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
