"""The list of known faults: the code's, the document's and the tests'."""

from __future__ import annotations

import re
from pathlib import Path

from broken_models import FOLDER_FAULTS, GGUF_FAULTS

ROOT = Path(__file__).parents[2]
# Made by tests of this folder alone.
OTHERS = {
    "repeated-head",
    "rebuilt-tokenizer",
    "mlx-minicpm",
    "missing-tokenizer",
    "impossible-config",
    "unreadable",
    "unreadable-tokenizer",
    "wrapped-names",
    "broken-template",
}


def test_the_document_lists_every_fault_and_every_fault_is_made_in_a_test():
    files = (ROOT / "src" / "minicpm" / "doctor").glob("*.py")
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    written = set(re.findall(r'Fault\(\s*"([a-z-]+)"', code)) | {"wrong-bos", "wrong-eos"}
    listed = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert written == set(listed) == {*GGUF_FAULTS, *FOLDER_FAULTS, *OTHERS}
