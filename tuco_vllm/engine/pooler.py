"""What an engine that scores hands out: each request its numbers, where vLLM pools hidden states."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuco_vllm.decomposition import NORM_COLUMNS
from tuco_vllm.engine.compat import Pooler
from tuco_vllm.engine.row_pieces import RowPieces, RowValues
from tuco_vllm.engine.scoring_rows import rows_asked, rows_of_step


class ContributionPooler(Pooler):
    """Hands each request its rows of what the model returned, float32.

    Of a prompt that is one, ``[L, 7]``: a chunk that does not end its prompt gets a row that the runner
    discards. Where more are asked for, the request's state keeps them until the last has come
    (``RowPieces.whole``).
    """

    def __init__(self) -> None:
        super().__init__()
        self.values = RowValues()
        """What the step has brought beside norms; set by the model."""
        self.fetch = False
        """Whether what is handed out is fetched here, in one copy; set on runner V2, which otherwise makes
        one a request in every step that does not end all of its prompts."""

    def get_supported_tasks(self) -> set[Any]:
        """vLLM's name for "numbers of any shape, one tensor a request"."""
        return {"classify"}

    def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> Tensor | list[Tensor]:
        """``[T, 7 L]`` -> ``[requests, L, 7]``; where rows are asked for, a list of any sizes."""
        asked = [rows_asked(params) for params in pooling_metadata.pooling_params]
        norms_RLN = hidden_states.unflatten(1, (-1, len(NORM_COLUMNS)))
        cursor = pooling_metadata.pooling_cursor
        ends, scheduled = cursor.seq_lens_cpu.numpy(), cursor.num_scheduled_tokens_cpu.numpy()
        counts = rows_of_step(asked, ends - scheduled, scheduled)
        if counts is None:
            return _fetched(norms_RLN[: len(asked)]) if self.fetch else norms_RLN[: len(asked)]
        stops = np.cumsum(counts)
        values, states = self.values._replace(norms_RLN=norms_RLN), pooling_metadata.pooling_states
        self.values = RowValues()  # not held through the next step
        pooled = []
        for wish, count, stop, state, end in zip(asked, counts, stops, states, ends, strict=True):
            if wish is None:
                pooled.append(norms_RLN[stop - 1])
                continue
            pieces = state.__dict__.setdefault("tuco_pieces", RowPieces())
            pieces.add(values.cut(slice(stop - count, stop)), int(end), wish)
            pooled.append(pieces.whole(int(end), wish))
        together = torch.cat([each.to(norms_RLN.device).flatten() for each in pooled])
        return _split(_fetched(together), pooled)


def _fetched(numbers: Tensor) -> Tensor:
    """In the host's memory once the device has come this far: runners wait for that before anybody reads."""
    return numbers.to("cpu", non_blocking=True)


def _split(numbers: Tensor, like: list[Tensor]) -> list[Tensor]:
    """``numbers`` in tensors of the shapes that ``like`` has."""
    parts = numbers.split([each.numel() for each in like])
    return [part.view(each.shape) for part, each in zip(parts, like, strict=True)]
