"""Instruction sets that a machine lacks show as skipped, and the lists of them are those of csrc/isa.cc."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import isas
from isas import ARM_ISAS, X86_ISAS, every_isa

SOURCE = Path(__file__).parents[1] / "csrc" / "isa.cc"


def names_of(choices: str) -> set[str]:
    return {*re.findall(r'\{"(\w+)", kernels_', choices), "generic"}


def test_the_lists_are_those_of_the_engine():
    choices = SOURCE.read_text(encoding="utf-8").partition("kChoices[] = {")[2]
    x86, _, arm = choices.partition("#elif defined(__aarch64__)")
    assert (names_of(x86), names_of(arm)) == (set(X86_ISAS), set(ARM_ISAS))


def skipped(parameters: list[object]) -> dict[str, str]:
    """The reason of each parameter that is skipped."""
    marked = [parameter for parameter in parameters if not isinstance(parameter, str)]
    return {parameter.values[0]: parameter.marks[0].args[0] for parameter in marked}


@pytest.mark.parametrize("machine", isas.ISAS_OF)
def test_a_set_that_the_machine_lacks_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch, machine: str):
    monkeypatch.setattr(isas.native, "why_missing", lambda: None)
    monkeypatch.setattr(isas, "runnable_isas", lambda: ["avx2", "neondot", "generic"])
    found = every_isa(machine)
    lacking = set(isas.ISAS_OF[machine]) - {"avx2", "neondot", "generic"}
    assert len(found) == len(isas.ISAS_OF[machine]) and lacking
    assert skipped(found) == {isa: f"this machine has no {isa}" for isa in lacking}


def test_without_the_engine_all_are_skipped_and_the_reason_is_that(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(isas.native, "why_missing", lambda: "not built")
    assert skipped(every_isa("x86_64")) == dict.fromkeys(X86_ISAS, "no native engine: not built")
