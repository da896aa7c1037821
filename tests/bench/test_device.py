"""The description of a device, from systems that are simulated by files and command outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicpm.bench import device
from minicpm.bench.device import this_device

CORE = """processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm asimddp
CPU implementer\t: 0x{maker}
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0x{part}
CPU revision\t: 1

"""


def silent(*command: str) -> str:
    return ""


def system(root: Path, **files: str) -> Path:
    """A root with these files; `__` in a name stands for a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def cores(*kinds: tuple[str, str]) -> str:
    return "".join(CORE.format(number=i, maker=maker, part=part) for i, (maker, part) in enumerate(kinds))


def test_a_board_is_called_what_its_device_tree_says(tmp_path: Path):
    root = system(tmp_path, proc__cpuinfo=cores(*[("41", "d0b")] * 4))
    system(root / "proc", **{"device-tree__model": "Raspberry Pi 5 Model B Rev 1.0\0"})
    system(root / "proc", **{"device-tree__compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0"})
    assert device._linux(root, silent) == {
        "name": "Raspberry Pi 5 Model B Rev 1.0",
        "soc": "brcm,bcm2712",
        "processor": "4x Cortex-A76",
    }


def test_a_phone_is_called_what_its_properties_say(tmp_path: Path):
    properties = {
        "ro.build.version.release": "14",
        "ro.product.manufacturer": "Xiaomi",
        "ro.product.model": "Xiaomi 13",
        "ro.soc.manufacturer": "QTI",
        "ro.soc.model": "SM8550",
    }
    kinds = [*[("41", "d46")] * 3, *[("41", "d4d")] * 2, ("41", "d4e"), ("99", "123")]
    root = system(tmp_path, proc__cpuinfo=cores(*kinds) + "Hardware\t: Something older\n")

    def getprop(*command: str) -> str:
        assert command[0] == "getprop"
        return properties[command[1]] + "\n"

    assert device._linux(root, getprop) == {
        "name": "Xiaomi 13",
        "soc": "QTI SM8550",
        "processor": "3x Cortex-A510 + 2x Cortex-A715 + 1x Cortex-X3 + 1x core 0x99:0x123",
        "system": "Android 14",
    }


def test_an_old_phone_without_properties_says_its_hardware(tmp_path: Path):
    root = system(tmp_path, proc__cpuinfo=cores(("51", "805"), ("51", "804")) + "Hardware\t: Qualcomm SM8150\n")
    found = device._linux(root, silent)
    assert found == {"soc": "Qualcomm SM8150", "processor": "1x Kryo 4xx Silver + 1x Kryo 4xx Gold"}


@pytest.mark.parametrize(
    ("tables", "name"),
    [
        ({"sys_vendor": "LENOVO", "product_name": "20XW004AGE"}, "LENOVO 20XW004AGE"),
        ({"sys_vendor": "HP", "product_name": "HP EliteBook 845"}, "HP EliteBook 845"),
        ({"sys_vendor": "To Be Filled By O.E.M.", "product_name": "To Be Filled By O.E.M."}, None),
        (
            {"sys_vendor": "System manufacturer", "product_name": "System Product Name"}
            | {"board_vendor": "ASUS", "board_name": "PRIME B550"},
            "ASUS PRIME B550",
        ),
        ({"product_name": "a name alone", "product_serial": "4711"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_a_pc_is_called_what_its_tables_say_where_somebody_wrote_a_name(tmp_path: Path, tables: dict, name: str | None):
    root = system(tmp_path, proc__cpuinfo="model name\t: AMD Ryzen 7 <8>\n")
    system(root / "sys/class/dmi/id", **tables)
    assert device._linux(root, silent).get("name") == name
    assert device._linux(root, silent)["processor"] == "AMD Ryzen 7 8"  # nothing that would break a table


def test_a_mac_is_called_what_sysctl_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("platform.mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    answers = {"hw.model": "Mac14,2\n", "machdep.cpu.brand_string": "Apple M2\n"}
    assert device._apple(lambda *command: answers[command[-1]]) == {
        "name": "Mac14,2",
        "processor": "Apple M2",
        "system": "macOS 15.1",
    }


def test_a_system_that_tells_nothing_is_no_error(tmp_path: Path):
    assert device._linux(tmp_path, silent) == {}


def test_commands_that_are_not_there_fail_or_hang_say_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "_ANSWER_WITHIN_S", 0.1)
    assert device._ask("no-such-command-anywhere") == ""
    assert device._ask("false") == ""
    assert device._ask("sleep", "5") == ""
    assert device._ask("echo", "yes") == "yes\n"


def test_this_device_is_described_and_may_be_named():
    found, named = this_device(), this_device("The old box under the desk")
    assert found.memory_bytes is not None and found.memory_bytes > 1 << 28
    assert found.logical_processors is not None and found.logical_processors >= 1
    assert found.system and found.architecture
    assert named.name == "The old box under the desk"
    assert named.processor == found.processor
