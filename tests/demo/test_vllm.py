"""`--backend vllm` starts `minicpm serve` in vLLM's environment and ends it.

Here a small program stands for that environment's Python; tests/vllm has the real one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("httpx")

from minicpm import EngineOptions
from minicpm.cli.main import parse
from minicpm.demo.vllm import running_vllm
from minicpm.errors import FormatError, ModelError
from minicpm.sampling import SamplingParams

PROGRAM = f"""#!{sys.executable}
import os, sys
from pathlib import Path
if "-c" in sys.argv:
    sys.exit(Path(sys.argv[0]).with_name("no-minicpm").exists())
Path(sys.argv[0]).with_name("arguments").write_text("\\n".join(sys.argv[1:]))
Path(sys.argv[0]).with_name("pid").write_text(str(os.getpid()))
if "--context" in sys.argv:
    sys.exit("minicpm: context 9 is too long\\nan Error at the end")
if "--tensor-parallel-size" in sys.argv:
    sys.exit("ValueError: too many cards\\nEngine core ended")
sys.path[:0] = {sys.path!r}
from browser.scripted_server import ScriptedServer
server = ScriptedServer(int(sys.argv[sys.argv.index("--port") + 1]))
server.key = os.environ["MINICPM_API_KEY"]
assert server.key not in sys.argv
server.will_say("Bei", "jing")
with server:
    import threading
    threading.Event().wait()
"""


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("vllm", "python"):
        (tmp_path / name).write_text(PROGRAM)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def test_it_is_started_asked_and_ended(bin_folder, golden):
    async def ask(source) -> str:
        return [state async for state in source.answer([{"role": "user", "content": "?"}], SamplingParams())][-1].text

    model = shutil.copytree(golden / "minicpm2b_tied", bin_folder / "model")
    (model / "generation_config.json").write_text('{"temperature": 0.25}')
    with running_vllm(model, "scripted", EngineOptions(max_batch=3)) as source:
        assert asyncio.run(ask(source)) == "Beijing"
        assert source.sampling == SamplingParams(temperature=0.25)
        assert (source.model, source.engine) == ("scripted", "vLLM")
    ours = (bin_folder / "arguments").read_text().split("\n")
    assert ours[:3] == ["-P", "-m", "minicpm"]
    args = parse(ours[3:])
    assert (args.verb, args.backend, args.model, args.host) == ("serve", "vllm", str(model), "127.0.0.1")
    assert (args.max_batch, args.dtype, args.context, args.api_key) == (3, "auto", None, None)
    with pytest.raises(ProcessLookupError):
        os.kill(int((bin_folder / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (EngineOptions(context=9), "context 9 is too long"),
        (EngineOptions(backend="vllm", vllm_options={"tensor_parallel_size": 9}), "ValueError: too many cards"),
    ],
    ids=["ours", "vLLM's"],
)
def test_one_that_ends_is_a_sentence_with_its_reason(bin_folder, golden, options, reason):
    with (
        pytest.raises(ModelError, match=f"ended with code 1 before it could answer: {reason}$"),
        running_vllm(golden / "minicpm2b_tied", "toy", options),
    ):
        pass


def test_a_folder_without_a_model_is_said_before_vllm_is_started(bin_folder, tmp_path):
    with pytest.raises(FormatError), running_vllm(tmp_path, "toy", EngineOptions()):
        pass
    assert not (bin_folder / "arguments").exists()


def test_without_vllm_the_way_to_one_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, golden: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(ModelError, match="no vllm on the PATH"),
        running_vllm(golden / "minicpm2b_tied", "toy", EngineOptions()),
    ):
        pass


@pytest.mark.parametrize("is_python_there", [True, False])
def test_an_environment_without_this_package_is_told_what_it_needs(bin_folder, golden, is_python_there):
    if is_python_there:
        (bin_folder / "no-minicpm").touch()
    else:
        (bin_folder / "python").unlink()
    with (
        pytest.raises(ModelError, match=r"python has no minicpm, which must start vLLM .*python -m pip install \.'"),
        running_vllm(golden / "minicpm2b_tied", "toy", EngineOptions()),
    ):
        pass
