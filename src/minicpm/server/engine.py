"""What the server needs of an engine: `minicpm.engine.service.Service` is one, the tests have one that only counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from minicpm.engine.constraint import Constraint
from minicpm.engine.request import Piece
from minicpm.engine.service import ServiceStatistics
from minicpm.sampling import SamplingParams


class Ticket(Protocol):
    def cancel(self) -> None: ...


class Engine(Protocol):
    """Callbacks come on a thread of the engine's own."""

    @property
    def is_alive(self) -> bool: ...

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        on_piece: Callable[[Piece], None],
        on_error: Callable[[Exception], None],
        is_chat: bool,
        choice: int = 0,
        constraint: Constraint | None = None,
    ) -> Ticket: ...

    def embed(self, texts: Sequence[str | Sequence[int]]) -> npt.NDArray[np.float32]: ...

    def statistics(self) -> ServiceStatistics: ...
