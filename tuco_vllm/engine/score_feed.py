"""From the engine's steps to the HTTP response that asked for scores: which rows belong to which choice.

vLLM's serving code carries no scores, and a finished completion has them too late for a stream. So the output
processor is listened to: it sees every step's outputs before anybody is woken up to read them. What links the
two ends is a context variable, set for the time of one HTTP request: vLLM adds that request's engine requests
from within, whatever ids it gives them, and the link goes when vLLM forgets them. Nothing is kept by name, so
nothing can be left behind or be mixed up between clients that send the same request id.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuco_vllm.metrics import fraction
from tuco_vllm.steering import TUCO

Rows = NDArray[np.float32]
"""Norms ``[n, L, 7]`` of n tokens, in ``decomposition.NORM_COLUMNS``' order."""


class ResponseScores:
    """The score rows of one HTTP response: ``add`` as engine steps come, ``take`` as chunks leave.

    ``on_prompt`` is told each prompt's TuCo, once, also where it has several choices. ``watch`` is told all
    rows: (engine request, choice, tokens of its prompt, rows). Without ``keep`` none are there to ``take``.
    """

    def __init__(
        self,
        on_prompt: Callable[[float], object] = lambda tuco: None,
        watch: Callable[[str, int, int | None, Rows], object] | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self._on_prompt, self._watch, self._keep = on_prompt, watch, keep
        self._begun: set[tuple[str, int]] = set()
        self._rows: dict[int, list[Any]] = {}
        self._taken: dict[int, int] = {}
        self._open = True

    @property
    def waiting(self) -> int:
        """How many rows have come and were not taken."""
        return sum(map(len, self._rows.values())) - sum(self._taken.values())

    def add(
        self, choice: int, rows: Rows, *, first_choice: bool, request: str = "", tokens: int | None = None
    ) -> None:
        """Rows of a choice's next tokens; ``first_choice`` says that it is its prompt's first.

        ``request`` is the engine's, whose prompt has ``tokens``: None of one that is no tokens.
        """
        if not self._open or not len(rows):
            return
        if first_choice and (request, choice) not in self._begun:
            self._on_prompt(tuco_of_rows(rows[:1])[0])
        self._begun.add((request, choice))
        if self._watch is not None:
            self._watch(request, choice, tokens, rows)
        if self._keep:
            self._rows.setdefault(choice, []).extend(rows)

    def take(self, choice: int, end: int | None = None) -> tuple[int, list[Any]]:
        """(place of the first, rows): a choice's first ``end`` rows, or all, without those taken before."""
        rows, start = self._rows.get(choice, []), self._taken.get(choice, 0)
        taken = rows[start:end]
        self._taken[choice] = start + len(taken)
        return start, taken

    def close(self) -> None:
        """Let go of all rows, and of those that may still come."""
        self._open = False
        self._rows.clear()
        self._taken.clear()


RECEIVER: ContextVar[ResponseScores | None] = ContextVar("tuco_receiver", default=None)
"""Whose engine requests are being added: set around the handling of one scored HTTP request."""


def tuco_of_rows(rows: Any) -> list[float]:
    """TuCo (paper Def. 4.3) of each of n rows ``[L, 7]``."""
    return [fraction(float(row[-1, 3]), float(row[-1, 2])) for row in rows]


def feed_scores(output_processor: Any) -> None:
    """Have an AsyncLLM's output processor hand score rows to the ``RECEIVER`` of their request.

    Scored requests without one (``routed_experts`` of the finished completion is read) are left alone.
    """
    add_request, process_outputs = output_processor.add_request, output_processor.process_outputs
    states = output_processor.request_states

    def add(request: Any, prompt: Any, parent: Any = None, index: int = 0, *args: Any, **kwargs: Any) -> None:
        add_request(request, prompt, parent, index, *args, **kwargs)
        receiver = RECEIVER.get()
        if receiver is not None:
            ids, choice = request.prompt_token_ids, _choice(request, parent, index)
            about = {"first_choice": index == 0, "tokens": None if ids is None else len(ids)}
            states[request.request_id].tuco_receiver = receiver, choice, about

    def process(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        arrived = []
        for output in outputs:
            if output.routed_experts is not None:
                receiver = getattr(states.get(output.request_id), "tuco_receiver", None)
                if receiver is not None:
                    arrived.append((output, receiver, output.routed_experts))
                    output.routed_experts = None  # vLLM would put it into the response, in base64
        result = process_outputs(outputs, *args, **kwargs)
        for output, (receiver, choice, about), rows in arrived:
            # By now vLLM has cut the tokens behind a stop string. Its readers wake up only after this.
            receiver.add(choice, rows[: len(output.new_token_ids)], **about, request=output.request_id)
        return result

    output_processor.add_request, output_processor.process_outputs = add, process


def ask_for_scores(engine: Any) -> None:
    """Have an AsyncLLM score all requests that have a ``RECEIVER``, also those that do not ask for it."""
    generate = engine.generate

    def scored(prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        extra = sampling_params.extra_args or {}
        if RECEIVER.get() is not None and not extra.get(TUCO):
            sampling_params = sampling_params.clone()
            sampling_params.extra_args = {**extra, TUCO: True}
        return generate(prompt, sampling_params, *args, **kwargs)

    engine.generate = scored


def _choice(request: Any, parent: Any, index: int) -> int:
    """The place in ``choices`` of an engine request: sample ``index`` of its prompt.

    vLLM numbers a completion's prompts in their ids, ``cmpl-ID-PROMPT``; a chat has one prompt.
    """
    name = request.external_req_id
    last = name.rpartition("-")[2]
    # At some of its other routes ids are the clients' own.
    prompt = int(last) if name.startswith("cmpl-") and last.isdecimal() and len(last) < 9 else 0
    return prompt * (parent.n if parent is not None else 1) + index
