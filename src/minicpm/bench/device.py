"""Describes this device from what the system reports: its name, processor and memory.

It reads nothing that identifies the owner: no host or person's name, no serial number, no path.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minicpm.engine.memory import total_memory_bytes
from minicpm.errors import one_line

MAX_NAME = 100
# Characters that would break a Markdown table or act as markup in it.
UNSHOWABLE = re.compile(r"[|<>`\[\]\\]")
_ANSWER_WITHIN_S = 5.0

# Placeholders in a PC's DMI tables for a missing name.
_NO_NAME = re.compile(
    r".*\bo\.e\.m\.|(default|type).*string|(system|base board|product|board) (product |name|manufacturer).*"
    r"|not (specified|applicable|available)|none|n/?a|unknown|",
    re.IGNORECASE,
)

# MIDR_EL1 of ARM processors: implementer -> part -> core, from the manufacturers' reference manuals.
_CORES: dict[int, dict[int, str]] = {
    0x41: {
        0xD03: "Cortex-A53",
        0xD04: "Cortex-A35",
        0xD05: "Cortex-A55",
        0xD07: "Cortex-A57",
        0xD08: "Cortex-A72",
        0xD09: "Cortex-A73",
        0xD0A: "Cortex-A75",
        0xD0B: "Cortex-A76",
        0xD0C: "Neoverse-N1",
        0xD0D: "Cortex-A77",
        0xD0E: "Cortex-A76AE",
        0xD40: "Neoverse-V1",
        0xD41: "Cortex-A78",
        0xD42: "Cortex-A78AE",
        0xD44: "Cortex-X1",
        0xD46: "Cortex-A510",
        0xD47: "Cortex-A710",
        0xD48: "Cortex-X2",
        0xD49: "Neoverse-N2",
        0xD4B: "Cortex-A78C",
        0xD4C: "Cortex-X1C",
        0xD4D: "Cortex-A715",
        0xD4E: "Cortex-X3",
        0xD4F: "Neoverse-V2",
        0xD80: "Cortex-A520",
        0xD81: "Cortex-A720",
        0xD82: "Cortex-X4",
        0xD84: "Neoverse-V3",
        0xD85: "Cortex-X925",
        0xD87: "Cortex-A725",
        0xD8E: "Neoverse-N3",
    },
    0x51: {
        0x001: "Oryon",
        0x800: "Kryo 2xx Gold",
        0x801: "Kryo 2xx Silver",
        0x802: "Kryo 3xx Gold",
        0x803: "Kryo 3xx Silver",
        0x804: "Kryo 4xx Gold",
        0x805: "Kryo 4xx Silver",
    },
    0x61: {
        0x022: "M1 Icestorm",
        0x023: "M1 Firestorm",
        0x024: "M1 Pro Icestorm",
        0x025: "M1 Pro Firestorm",
        0x028: "M1 Max Icestorm",
        0x029: "M1 Max Firestorm",
        0x032: "M2 Blizzard",
        0x033: "M2 Avalanche",
        0x034: "M2 Pro Blizzard",
        0x035: "M2 Pro Avalanche",
        0x038: "M2 Max Blizzard",
        0x039: "M2 Max Avalanche",
    },
}

# Runs a command and returns its output; "" if the command is missing or fails.
Ask = Callable[..., str]


@dataclass(frozen=True)
class Device:
    """A field is None if the system does not report it."""

    name: str | None  # Raspberry Pi 5 Model B Rev 1.0
    soc: str | None  # brcm,bcm2712
    processor: str | None  # 4x Cortex-A76
    logical_processors: int | None
    memory_bytes: int | None
    system: str  # Linux, Android 14, macOS 15.1
    architecture: str  # aarch64


def this_device(name: str | None = None) -> Device:
    """The device that this process runs on; `name` overrides the system's name for it."""
    tells = _apple(_ask) if platform.system() == "Darwin" else _linux(Path("/"), _ask)
    return Device(
        name=name or tells.get("name"),
        soc=tells.get("soc"),
        processor=tells.get("processor"),
        logical_processors=os.cpu_count(),
        memory_bytes=total_memory_bytes(),
        system=tells.get("system", platform.system()),
        architecture=platform.machine(),
    )


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_ANSWER_WITHIN_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _apple(ask: Ask) -> dict[str, str]:
    version = platform.mac_ver()[0]
    return _known(
        name=ask("sysctl", "-n", "hw.model"),
        processor=ask("sysctl", "-n", "machdep.cpu.brand_string"),
        system=f"macOS {version}" if version else "",
    )


def _linux(root: Path, ask: Ask) -> dict[str, str]:
    """Read Android's properties, a board's device tree or a PC's DMI tables, whichever exist, and /proc/cpuinfo."""
    cpuinfo = _read(root / "proc/cpuinfo")
    tree = root / "proc/device-tree"
    # Ordered from the board to its family: the last entry is the SoC.
    compatible = _read(tree / "compatible").strip("\0").split("\0")
    android = ask("getprop", "ro.build.version.release").strip()

    def prop(name: str) -> str:
        return ask("getprop", name).strip() if android else ""

    return _known(
        name=_joined(prop("ro.product.manufacturer"), prop("ro.product.model"))
        or _read(tree / "model").strip("\0")
        or _pc(root / "sys/class/dmi/id"),
        soc=_joined(prop("ro.soc.manufacturer"), prop("ro.soc.model")) or compatible[-1] or _field(cpuinfo, "Hardware"),
        processor=_arm_cores(cpuinfo) or _field(cpuinfo, "model name"),
        system=f"Android {android}" if android else "",
    )


def _pc(tables: Path) -> str:
    for kind in ("sys_vendor", "product_name"), ("board_vendor", "board_name"):
        parts = [_read(tables / part).strip() for part in kind]
        if not any(map(_NO_NAME.fullmatch, parts)):
            return _joined(*parts)
    return ""


def _arm_cores(cpuinfo: str) -> str:
    """Each kind of core with its count, in the order of the core numbers."""
    pairs = re.findall(r"^CPU implementer\s*:\s*0x(\w+)$(?:.|\n)*?^CPU part\s*:\s*0x(\w+)$", cpuinfo, re.MULTILINE)
    counts = Counter(
        _CORES.get(int(maker, 16), {}).get(int(part, 16), f"core 0x{maker}:0x{part}") for maker, part in pairs
    )
    return " + ".join(f"{count}x {core}" for core, count in counts.items())


def _field(cpuinfo: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else ""


def _joined(maker: str, model: str) -> str:
    """Maker and model; the model alone if it begins with the maker."""
    return model if not maker or model.lower().startswith(maker.lower()) else f"{maker} {model}".strip()


def _known(**told: str) -> dict[str, str]:
    shown = {name: one_line(UNSHOWABLE.sub(" ", text), MAX_NAME) for name, text in told.items()}
    return {name: text for name, text in shown.items() if text}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
