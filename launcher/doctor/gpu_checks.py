"""GPUs: the driver beside torch's CUDA, each GPU, what joins them to each other and to other nodes, attention packages.

Without GPUs this is two lines. Links are asked for (peer access, nvidia-smi, /sys), never loaded: a doctor that started
NCCL would take GPU memory from a run that goes on beside it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.core.hardware import driver as driver_here
from launcher.core.hardware import gpus as visible_gpus
from launcher.doctor.finding import GIB, Finding, child_importing, gib, imported, version
from launcher.doctor.machine_checks import free_bytes

DRIVERS = {13: (580,), 12: (525, 60, 13), 11: (450, 80, 2)}  # the oldest for a major version of CUDA, on Linux
OLDER = "make setup TORCH=cu126, whose CUDA 12 takes driver 525 or newer, or install driver {} or newer"
SHARED = GIB  # of /dev/shm, below which NCCL between the GPUs of a node may find no room
BUSY = 0.9  # of a GPU's memory should be free
IMPLEMENTATIONS = {  # of flash attention: module, package
    "FA2": ("flash_attn.flash_attn_interface", "flash-attn"),
    "FA3": ("flash_attn_interface", "flash-attn-3"),
    "FA4": ("flash_attn.cute.interface", "flash-attn-4"),
}
CUDNN = 90000  # cuDNN 9, whose attention a run may choose
SYSTEM = Path("/sys")
SMI_SECONDS = 10.0


def driver() -> Iterator[Finding]:
    """NVIDIA's driver beside the CUDA that torch was built for."""
    import torch

    if not visible_gpus():
        return
    there, cuda = driver_version(), torch.version.cuda
    if not cuda:
        found = f"{there or 'unknown'}; torch {torch.__version__} is built without CUDA"
        yield Finding("driver", "problem", found, f"make setup TORCH={build_for(there)} (docs/gpu.md)")
        return
    needed = needed_driver(cuda)
    found = f"{there or 'unknown'}; torch for CUDA {cuda} needs {'.'.join(map(str, needed))} or newer"
    old = bool(there) and numbers(there) < needed
    if old and torch.cuda.is_available():
        yield Finding("driver", "note", f"{found}, but works: a compatibility package of CUDA stands in for it")
    elif old:
        yield Finding("driver", "problem", found, OLDER.format(needed[0]))
    else:
        yield Finding("driver", "ok" if there else "note", found, "" if there else "nvidia-smi should tell it")


def needed_driver(cuda: str) -> tuple[int, ...]:
    """The oldest driver for a version of CUDA, by its major number (minor version compatibility)."""
    return DRIVERS.get(int(cuda.split(".")[0]), (580,))


def build_for(there: str) -> str:
    """The build of torch that a driver takes."""
    return "cu130" if not there or numbers(there) >= DRIVERS[13] else "cu126"


def numbers(text: str) -> tuple[int, ...]:
    """A version that compares."""
    return tuple(int(n) for n in re.findall(r"\d+", text))


def driver_version() -> str:
    """Of the kernel's module, or as nvidia-smi says it; empty if neither does."""
    found = driver_here()
    if found != "unknown":
        return found
    return _smi("--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0].strip()


def gpus() -> Iterator[Finding]:
    """Each GPU."""
    import torch

    seen = visible_gpus()
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            yield _gpu(number)
    elif seen:
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        found = f"{seen} NVIDIA GPUs; torch {torch.__version__}, {build}, cannot use them"
        yield Finding("gpu", "problem", found, f"make setup TORCH={build_for(driver_version())} (docs/gpu.md)")
    else:
        yield Finding("gpu", "ok", "none: CPU and gloo, same code path")


def _gpu(number: int) -> Finding:
    import torch

    card = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    bf16 = "BF16" if card.major >= 8 else "no BF16"
    found = f"{card.name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free, compute {card.major}.{card.minor}, {bf16}"
    if not has_code_for((card.major, card.minor), torch.cuda.get_arch_list()):
        built = ", ".join(torch.cuda.get_arch_list())
        return Finding(
            f"gpu {number}", "problem", f"{found}; torch has code for {built} alone", "another build of torch"
        )
    if free < BUSY * total:
        return Finding(f"gpu {number}", "note", f"{found}; others use it", "nvidia-smi tells who")
    if card.major < 8:
        return Finding(f"gpu {number}", "note", found, "dtype=float32: this GPU has no BF16 arithmetic")
    return Finding(f"gpu {number}", "ok", found)


def has_code_for(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Whether a build of torch runs on a GPU: code of its generation up to its minor number, or older PTX."""
    for name in built:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name)
        if found and found[1] == "sm" and int(found[2]) == capability[0] and int(found[3]) <= capability[1]:
            return True
        if found and found[1] == "compute" and (int(found[2]), int(found[3])) <= capability:
            return True
    return False


def links() -> Iterator[Finding]:
    """Between the GPUs of this machine: peer access of all pairs, and by what."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2:
        return
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    apart = [f"{a}-{b}" for a, b in pairs if not torch.cuda.can_device_access_peer(a, b)]
    if apart:
        some = ", ".join(apart[:8]) + (", ..." if len(apart) > 8 else "")
        remedy = "copies go through the host's memory; IOMMU off, ACS off, or a container with all GPUs may mend it"
        yield Finding(
            "peer access", "note", f"{len(apart)} of {len(pairs)} pairs do not reach each other: {some}", remedy
        )
    else:
        yield Finding("peer access", "ok", f"all {count} GPUs reach each other's memory")
    kinds = link_kinds(_smi("topo", "-m"), count)
    if not kinds:
        return
    found = ", ".join(f"{kind} {times} pairs" for kind, times in sorted(kinds.items()))
    if all(kind.startswith("NV") for kind in kinds):
        yield Finding("links", "ok", f"NVLink between all GPUs ({found})")
    else:
        remedy = "mesh.ring sends less at once than mesh.ulysses: prefer it where there is no NVLink"
        yield Finding("links", "note", f"not all by NVLink: {found}", remedy)


def link_kinds(table: str, count: int) -> dict[str, int]:
    """What `nvidia-smi topo -m` says of pairs of GPUs: {"NV18": 28}; empty if it says nothing."""
    found: dict[str, int] = {}
    for line in re.sub(r"\x1b\[[0-9;]*m", "", table).splitlines():
        cells = line.split()
        if not cells or not re.fullmatch(r"GPU\d+", cells[0]) or len(cells) <= count or cells[1].startswith("GPU"):
            continue
        row = int(cells[0].removeprefix("GPU"))
        for kind in cells[2 + row : 1 + count]:  # above the diagonal
            found[kind] = found.get(kind, 0) + 1
    return found


def network() -> Iterator[Finding]:
    """InfiniBand and RoCE, and whether GPUs are read by them directly. Nothing is said where there is none."""
    devices = sorted((SYSTEM / "class" / "infiniband").glob("*"))
    if not devices:
        return
    ports = [_port(port) for device in devices for port in sorted((device / "ports").glob("*"))]
    active = [told for told, is_active in ports if is_active]
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if not active:
        told = ", ".join(told for told, _ in ports) or "no ports"
        yield Finding("network", "note", told, "no port is active: NCCL will use TCP")
    elif soft != resource.RLIM_INFINITY:
        remedy = "ulimit -l unlimited (docker run --ulimit memlock=-1): else NCCL cannot register memory"
        yield Finding("network", "note", f"{', '.join(active)}; memlock at most {gib(soft)}", remedy)
    else:
        yield Finding("network", "ok", f"{', '.join(active)}; memlock unlimited")
    if not visible_gpus():
        return
    if (SYSTEM / "module" / "nvidia_peermem").exists():
        yield Finding("gpu direct", "ok", "nvidia-peermem is loaded")
    else:
        remedy = "modprobe nvidia-peermem; not needed where NCCL_DEBUG=INFO says GDRDMA, which DMA-BUF gives too"
        yield Finding("gpu direct", "note", "nvidia-peermem is not loaded", remedy)


def _port(port: Path) -> tuple[str, bool]:
    state, rate, layer = (_read(port / name) for name in ("state", "rate", "link_layer"))
    state = state.partition(":")[2].strip() or state
    return f"{port.parent.parent.name} {layer} {rate} {state}", state == "ACTIVE"


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return "unknown"


def nccl() -> Iterator[Finding]:
    """Its version, and the shared memory that it needs between the GPUs of a machine."""
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():
        return
    if not dist.is_nccl_available():
        yield Finding("nccl", "problem", "this torch is built without it", "install a CUDA build of torch")
        return
    found = ".".join(str(n) for n in torch.cuda.nccl.version())
    shared = free_bytes(Path("/dev/shm"))
    if torch.cuda.device_count() > 1 and shared < SHARED:
        remedy = "docker run --shm-size=16g, or a larger emptyDir of medium Memory at /dev/shm"
        yield Finding("nccl", "note", f"{found}; {gib(shared)} of shared memory", remedy)
    else:
        yield Finding("nccl", "ok", f"{found}; {gib(shared)} of shared memory")


def flash() -> Iterator[Finding]:
    """Which implementations of flash attention can be imported, not those that torch would take if they were there.

    FA2 and FA4 share the folder flash_attn, so that one of them may be there without the other.
    """
    import torch

    there = {
        name: module
        for name, (module, _) in IMPLEMENTATIONS.items()
        if importlib.util.find_spec(module.partition(".")[0]) is not None
    }
    broken, good = [], []
    if there:
        with child_importing(*there.values()) as child:
            for name, module in there.items():
                wrong = imported(child, module)
                if not wrong.startswith("ModuleNotFoundError: No module named 'flash_attn"):
                    told = f"{name} {version(IMPLEMENTATIONS[name][1])}".strip()
                    broken.append(f"{told}: {wrong}") if wrong else good.append(told)
    usable = torch.cuda.is_available()
    cudnn = (torch.backends.cudnn.version() or 0) if usable else 0
    own = f"torch's own kernel{' and that of cuDNN' if cudnn >= CUDNN else ''}{'' if usable else ' for this CPU'}"
    found = f"{', '.join(good) or 'no package of it'}; {own}"
    if broken:
        remedy = "install a build for this torch, or remove the package"
        yield Finding("flash attention", "note", f"{found}; cannot be imported: {'; '.join(broken)}", remedy)
    elif usable and torch.cuda.get_device_capability()[0] >= 9 and not good and cudnn < CUDNN:
        remedy = "FA3, FA4 or cuDNN's attention is said to be about twice as fast on this GPU: docs/gpu.md"
        yield Finding("flash attention", "note", found, remedy)
    else:
        yield Finding("flash attention", "ok", found)


def _smi(*arguments: str) -> str:
    """What nvidia-smi says; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=SMI_SECONDS, env=os.environ
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
