"""What calibration measures: the inputs that the whole model really gives to its matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.models.calibration import GROUPS, CalibrationRun

Floats = np.ndarray
ROWS = [[1, 5, 9, 200, 17, 4, 33], [1, 7, 7, 90], [1]]


class Opened:
    """The float weights of a folder, and the whole model that transformers makes of it."""

    def __init__(self, folder: Path):
        import minicpm.models  # noqa: F401 (registers its classes)

        with open_checkpoint(folder) as checkpoint:
            self.config: DecoderConfig = checkpoint.config
            self.weights = {name: checkpoint.read(name).float32().copy() for name in self.config.parameter_shapes()}
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def block(self, index: int) -> dict[str, Floats]:
        prefix = f"model.layers.{index}."
        return {name: values for name, values in self.weights.items() if name.startswith(prefix)}

    def inputs(self) -> dict[str, Floats]:
        """Every matrix's inputs of all rows (tokens, K), by published name, as the whole model computes them."""
        found: dict[str, list[Floats]] = {}
        hooks = []
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear) and ".layers." in name:
                taken = found.setdefault(f"{name}.weight", [])
                hooks.append(
                    module.register_forward_pre_hook(lambda _, given, taken=taken: taken.append(given[0][0].numpy()))
                )
        with torch.inference_mode():
            for row in ROWS:
                self.model(torch.tensor([row]))
        for hook in hooks:
            hook.remove()
        return {name: np.concatenate(parts).astype(np.float64) for name, parts in found.items()}


@pytest.fixture
def opened(golden: Path) -> Opened:
    return Opened(golden / "minicpm2b_tied")


def close(found: Floats, expected: Floats) -> bool:
    return bool(np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max())


def test_moments_are_those_of_the_whole_models_inputs(opened: Opened):
    inputs = opened.inputs()
    run = CalibrationRun(opened.config, opened.weights["model.embed_tokens.weight"], ROWS)
    seen: list[str] = []
    for block in range(opened.config.num_hidden_layers):
        for names, statistics in run.block(block, opened.block(block)):
            seen += names
            for name in names:
                x = inputs[name]
                assert close(statistics.moments, x.T @ x / len(x)), name
                assert close(statistics.cross, x.T @ x / len(x)), name
    assert len(seen) == len(set(seen)) == sum(map(len, GROUPS)) * opened.config.num_hidden_layers


def test_what_was_replaced_changes_the_inputs_behind_it_and_the_float_path_keeps_its_own(opened: Opened):
    floats = opened.inputs()
    noise = np.random.default_rng(0)
    changed = {
        name: values + 0.05 * values.std() * noise.standard_normal(values.shape).astype(np.float32)
        for name, values in opened.weights.items()
        if name.endswith("proj.weight")
    }
    embedding = opened.weights["model.embed_tokens.weight"]
    other = embedding * np.float32(1.01)
    run = CalibrationRun(opened.config, embedding, ROWS, other)
    found = {}
    for block in range(opened.config.num_hidden_layers):
        for names, statistics in run.block(block, opened.block(block)):
            found |= dict.fromkeys(names, statistics)
            run.replace({name: changed[name] for name in names})
    parameters = dict(opened.model.named_parameters())
    with torch.no_grad():
        for name, values in changed.items():
            parameters[name].copy_(torch.from_numpy(values))
        opened.model.get_input_embeddings().weight.copy_(torch.from_numpy(other))
    for name, x in opened.inputs().items():
        assert close(found[name].moments, x.T @ x / len(x)), name
        assert close(found[name].cross, floats[name].T @ x / len(x)), name


def test_a_restored_run_goes_on_with_the_same_bits(opened: Opened):
    def whole(run: CalibrationRun, first: int) -> list[Floats]:
        found = []
        for block in range(first, opened.config.num_hidden_layers):
            for names, statistics in run.block(block, opened.block(block)):
                found.append(statistics.cross)
                run.replace({name: opened.weights[name] * np.float32(0.9) for name in names})
        return found

    embedding = opened.weights["model.embed_tokens.weight"]
    run = CalibrationRun(opened.config, embedding, ROWS)
    expected = whole(run, 0)
    half = CalibrationRun(opened.config, embedding, ROWS)
    for names, _ in half.block(0, opened.block(0)):
        half.replace({name: opened.weights[name] * np.float32(0.9) for name in names})
    other = CalibrationRun(opened.config, embedding, ROWS)
    other.restore([row.numpy() for row in half.floats], [row.numpy() for row in half.replaced])
    for a, b in zip(expected[len(GROUPS) :], whole(other, 1), strict=True):
        assert np.array_equal(a, b)
