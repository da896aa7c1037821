"""`--backend vllm` starts a vLLM and ends it. Here a small program stands for it; docs/demo.md says what was tried."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("httpx")

from minicpm.demo.vllm import VllmOptions, running_vllm
from minicpm.errors import ModelError
from minicpm.sampling import SamplingParams

PROGRAM = f"""#!{sys.executable}
import os, sys
from pathlib import Path
Path(sys.argv[0]).with_name("arguments").write_text("\\n".join(sys.argv[1:]))
Path(sys.argv[0]).with_name("pid").write_text(str(os.getpid()))
if "--max-model-len" in sys.argv:
    sys.exit("ValueError: the context is too long\\nEngine core ended")
sys.path[:0] = {sys.path!r}
from browser.scripted_server import ScriptedServer
server = ScriptedServer(int(sys.argv[sys.argv.index("--port") + 1]))
server.key = os.environ["VLLM_API_KEY"]
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


def test_it_is_started_asked_and_ended(bin_folder):
    async def ask(source) -> str:
        return [state async for state in source.answer([{"role": "user", "content": "?"}], SamplingParams())][-1].text

    with running_vllm(Path("/models/toy"), "scripted", VllmOptions(parallel=3, template="<s>{{ a }}")) as source:
        assert asyncio.run(ask(source)) == "Beijing"
        assert (source.model, source.engine) == ("scripted", "vLLM")
    arguments = (bin_folder / "arguments").read_text().split("\n")
    assert arguments[:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "/models/toy"]
    assert {"--max-num-seqs", "3", "127.0.0.1", "<s>{{ a }}"} <= set(arguments)
    with pytest.raises(ProcessLookupError):
        os.kill(int((bin_folder / "pid").read_text()), 0)


def test_one_that_ends_is_a_sentence_with_its_reason(bin_folder):
    with (
        pytest.raises(
            ModelError, match="ended with code 1 before it could answer: ValueError: the context is too long"
        ),
        running_vllm(Path("/models/toy"), "toy", VllmOptions(context=1 << 20)),
    ):
        pass


def test_without_vllm_the_way_to_one_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(ModelError, match="no vllm on the PATH"),
        running_vllm(Path("/models/toy"), "toy", VllmOptions()),
    ):
        pass
