"""This package as a runner (protocol.py): python benchmarks/peers/minicpm_llm.py FOLDER THREADS [BACKEND]"""

from __future__ import annotations

import sys

from protocol import serve

from minicpm import LLM
from minicpm.bench.measure import Work


class MiniCPM(Work):
    def __init__(self, folder: str, threads: int, backend: str):
        llm = LLM(folder, threads=threads, backend=backend)
        super().__init__(llm.backend)
        self.facts = {"backend": llm.backend.name, "isa": getattr(llm.backend, "isa", None), "threads": threads}
        self.first_token()

    def verify(self, tokens: int, window_s: float, depth: int = 0) -> float:
        return self.verify_step(depth, tokens, window_s)


if __name__ == "__main__":
    backend = sys.argv[3] if len(sys.argv) > 3 else "auto"
    serve(lambda: MiniCPM(sys.argv[1], int(sys.argv[2]), backend))
