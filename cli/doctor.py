"""The verb `doctor`: check this machine and say what to fix. It changes nothing and sends nothing."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from groundup.common.settings import verb
from groundup.common.verbs import DoctorSettings

SHOWN = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "huggingface-hub")
LITTLE_MEMORY, LITTLE_DISK = 2 * 2**30, 5 * 2**30  # bytes: below them a small model's training may end half way
EXTRAS = {
    "playground": "the web page",
    "gguf": "export to llama.cpp",
    "serve": "llama.cpp: serving, and proving a GGUF file",
    "tracking": "curves in trackio or tensorboard",
}


@dataclass(frozen=True)
class Finding:
    """The result of one check: its name, what was found, and how to fix it (empty if nothing is wrong)."""

    name: str
    value: str
    mend: str = ""


@verb(DoctorSettings)
def doctor(settings: DoctorSettings) -> list[Finding]:
    """Check versions, devices, compiler, memory and the Hub login; print and return the findings."""
    findings = [finding for look in LOOKS for finding in look()]
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        table.add_row("[red]✗[/]" if finding.mend else "[green]✓[/]", finding.name, Text(finding.value))
    console = Console(highlight=False, soft_wrap=True)  # on standard output: the findings are what was asked for
    console.print(table)
    to_mend = [finding for finding in findings if finding.mend]
    console.print("\nTo fix:" if to_mend else "\nNothing to fix.")
    for finding in to_mend:
        console.print(f"  {finding.name}: {finding.mend}", markup=False)
    return findings


def versions() -> list[Finding]:
    """Return the versions of Python, groundup and the libraries, with a fix for a missing or outdated one."""
    found = [Finding("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")]
    for name in ("groundup", *SHOWN):
        version = installed(name)
        found.append(Finding(name, version or "not installed", "" if version else f"pip install {name}"))
    for line in importlib.metadata.requires("groundup") or []:
        requirement = Requirement(line)
        if requirement.marker is not None:
            continue  # an extra
        version = installed(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found.append(Finding(requirement.name, version or "not installed", f"pip install '{requirement}'"))
    return found


def extras() -> list[Finding]:
    """Return which optional parts are installed. A missing one is not a fault; its line says how to install it."""
    lines = [Requirement(line) for line in importlib.metadata.requires("groundup") or []]
    found = []
    for extra, purpose in EXTRAS.items():
        needed = [line.name for line in lines if line.marker and line.marker.evaluate({"extra": extra})]
        missing = [name for name in needed if installed(name) is None]
        state = f"no ({purpose}): pip install 'groundup[{extra}]'" if missing else f"yes ({purpose})"
        found.append(Finding(f"extra {extra}", state))
    return found


def installed(name: str) -> str | None:
    """Return the version of a distribution, or None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> list[Finding]:
    """Return CPU cores, threads, accelerators, and whether bf16 is multiplied in hardware."""
    import torch

    from groundup.training.plan import bf16_is_native

    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores, threads = len(allowed), torch.get_num_threads()
    slow = f"there are more threads than cores, which is slow: export OMP_NUM_THREADS={cores}"
    mend = slow if threads > cores else ""
    found = [Finding("processor", f"{cores} cores, {threads} threads", mend)]
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        found.append(Finding("accelerator", "none: everything runs on the CPU"))
    elif accelerator.type == "cuda":
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            found.append(Finding(f"accelerator {number}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB"))
    else:
        found.append(Finding("accelerator", accelerator.type))
    found.append(Finding("bf16", "in hardware" if bf16_is_native() else "not in hardware: fp32 is used"))
    return found


def compiler() -> list[Finding]:
    """Return the C++ compiler, which only `torch.compile` needs."""
    name = os.environ.get("CXX") or next((name for name in ("g++", "clang++", "c++", "cl") if shutil.which(name)), None)
    path = shutil.which(name) if name else None
    return [Finding("compiler", path or "none: torch.compile is not available, everything else works")]


def memory() -> list[Finding]:
    """Return free memory and free disk space in the current folder."""
    free, whole = psutil.virtual_memory().available, psutil.virtual_memory().total
    mend = "close other programs, or train with a smaller --micro-batch-rows" if free < LITTLE_MEMORY else ""
    found = [Finding("memory", f"{free / 2**30:.1f} of {whole / 2**30:.1f} GiB free", mend)]
    disk = shutil.disk_usage(Path.cwd()).free
    mend = "make room, or choose an --out on another disk" if disk < LITTLE_DISK else ""
    return [*found, Finding("disk here", f"{disk / 2**30:.1f} GiB free", mend)]


def hub() -> list[Finding]:
    """Return whether a Hub token is set (it is neither shown nor sent), and the download cache."""
    from huggingface_hub import constants, get_token

    offline = ", offline by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else ""
    token = "a token is set" if get_token() else "no token: `hf auth login` before `groundup publish`"
    cache = Path(constants.HF_HUB_CACHE)
    place = next(path for path in (cache, *cache.parents) if path.exists())
    mend = "" if os.access(place, os.W_OK) else f"{place} is not writable: set HF_HOME to a folder that is"
    return [Finding("Hub login", token + offline), Finding("Hub cache", str(cache), mend)]


def terminal() -> list[Finding]:
    """Return the terminal's encoding, which must allow text beyond ASCII, since models generate it."""
    encoding = (sys.stdout.encoding or "").lower()
    mend = "" if encoding.replace("-", "") == "utf8" else "export PYTHONUTF8=1"
    return [Finding("terminal", f"{encoding or 'unknown'}, {shutil.get_terminal_size().columns} columns", mend)]


LOOKS: tuple[Callable[[], list[Finding]], ...] = (versions, extras, devices, compiler, memory, hub, terminal)
