"""The Python way in: ``TucoLLM(pt=..., ft=...).score(prompts)``."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tuco_vllm.config import resolve_pair
from tuco_vllm.errors import InputError
from tuco_vllm.prompts import PromptEncoder, PromptError, load_tokenizer
from tuco_vllm.records import PromptInput, TucoScore

Key = TypeVar("Key")


class TucoLLM:
    """A pre-trained and a fine-tuned model in one vLLM engine.

    Args:
        pt, ft: model directories or hub ids ``org/name[@revision]``; checked before any weights load.
        task: "score".
        chat_template, system_prompt, on_long: how prompts become tokens, see ``prompts.PromptEncoder``.
        engine_args: any field of vLLM's EngineArgs: ``max_model_len``, ``dtype``, ``tensor_parallel_size``,
            ``gpu_memory_utilization``, ``enforce_eager``, ...

    Raises InputError for models or arguments that cannot work, EngineError when vLLM does not start. Close
    it, or use it as a context manager: the engine is processes of its own.
    """

    def __init__(
        self,
        pt: str | Path,
        ft: str | Path,
        *,
        task: str = "score",
        chat_template: str = "auto",
        system_prompt: str | None = None,
        on_long: str = "error",
        **engine_args: Any,
    ) -> None:
        if task != "score":
            raise InputError(f'task={task!r} is not available: this version has task="score" only')
        trust_remote_code = bool(engine_args.get("trust_remote_code", False))
        self.pair = resolve_pair(pt, ft, trust_remote_code=trust_remote_code)
        self.tokenizer = load_tokenizer(self.pair.ft.directory, trust_remote_code=trust_remote_code)
        self._encoder = PromptEncoder(
            self.tokenizer, chat_template=chat_template, system_prompt=system_prompt, on_long=on_long
        )

        # Only now: vLLM takes seconds to import, and everything that can be refused has been.
        from tuco_vllm.engine.scorer import VLLM_VERSION, Scorer

        self._scorer = Scorer(self.pair, **engine_args)
        self._encoder.max_model_len = self._scorer.max_model_len
        self.vllm_version: str = VLLM_VERSION

    @property
    def max_model_len(self) -> int:
        """Longest prompt in tokens."""
        return self._scorer.max_model_len

    @property
    def num_layers(self) -> int:
        """Decoder layers, L."""
        return self._scorer.num_layers

    @property
    def dtype(self) -> str:
        """What the engine computes in, such as "bfloat16"."""
        return self._scorer.dtype

    def score(self, prompts: Sequence[PromptInput]) -> list[TucoScore]:
        """TuCo of every prompt at its last token, in order.

        A string is scored raw, a chat through FT's template, token ids as they are. Raises PromptError,
        naming the prompt's place in the list, before anything is scored.
        """
        if isinstance(prompts, str):
            raise InputError("score() takes a list of prompts: put the string into a list")
        encoded = []
        for place, prompt in enumerate(prompts):
            try:
                encoded.append((place, self._encoder.encode(prompt).token_ids))
            except PromptError as error:
                raise PromptError(f"prompt {place}: {error}") from error
        return [score for _, score in self.score_stream(encoded)]

    def score_stream(self, items: Iterable[tuple[Key, list[int]]]) -> Iterator[tuple[Key, TucoScore]]:
        """Score (key, token ids) pairs as they come, in input order, with a bounded number in flight."""
        for (key, length), norms in self._scorer.stream((((key, len(ids)), ids) for key, ids in items)):
            yield key, TucoScore.from_norms(norms.tolist(), length)

    def close(self) -> None:
        """End the engine's processes. Idempotent."""
        self._scorer.close()

    def __enter__(self) -> "TucoLLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
