"""The Python way in: ``TucoLLM(pt=..., ft=...)``, then ``.score(prompts)`` or ``.generate(prompts, ...)``."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tuco_vllm.adapter import Adapter
from tuco_vllm.config import expect_row_dtype, expect_tokenizer, resolve_adapter, resolve_pair
from tuco_vllm.errors import InputError
from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.prompts import PromptEncoder, load_tokenizer
from tuco_vllm.records import PromptInput, ResponseInput, TucoScore
from tuco_vllm.responses import encode_with_response
from tuco_vllm.score_requests import NO_MORE, Adapted, MoreScores, engine_inputs, expect_streams
from tuco_vllm.shared_tokens import SharedTokens
from tuco_vllm.steering import (
    ALPHA,
    ALPHA_LAYERS,
    MAX_ALPHA,
    MIN_ALPHA,
    TUCO,
    Limits,
    Steering,
    parse_scale,
)

if TYPE_CHECKING:
    from tuco_vllm.engine.generator import RequestOutput, SamplingParams

Key = TypeVar("Key")
Alpha = float | Mapping[str, Any]
"""A number, or ``{"value": number, "layers": [first, last]}``."""


class TucoLLM:
    """A pre-trained and a fine-tuned model in one vLLM engine.

    Args:
        pt, ft: model directories or hub ids ``org/name[@revision]``; checked before any weights load.
        task: "score" for whole corpora of prompts, "generate" for completions under any alpha; the latter
            scores prompts as well, at a generating engine's speed.
        min_alpha, max_alpha: the bounds of what ``generate`` takes for alpha; 1 lies within them.
        row_dtype: what an engine that scores computes a 16-bit model's scores in: "float32", "model" (the
            model's dtype) or "auto", float32 where vLLM's layers of the family allow it. What it generates is
            steered in the model's dtype.
        chat_template, system_prompt, on_long: how prompts become tokens, see ``prompts.PromptEncoder``.
        engine_args: any field of vLLM's EngineArgs: ``max_model_len``, ``dtype``, ``tensor_parallel_size``,
            ``gpu_memory_utilization``, ``enforce_eager``, ...

    Raises InputError for models or arguments that cannot work, EngineError when vLLM does not start. Close
    it, or use it as a context manager: the engine is processes of its own.
    """

    def __init__(
        self,
        pt: str | Path | None,
        ft: str | Path,
        *,
        task: str = "score",
        min_alpha: float = MIN_ALPHA,
        max_alpha: float = MAX_ALPHA,
        row_dtype: str = "auto",
        chat_template: str = "auto",
        system_prompt: str | None = None,
        on_long: str = "error",
        **engine_args: Any,
    ) -> None:
        if task not in ("score", "generate"):
            raise InputError(f'task must be "score" or "generate", not {task!r}')
        limits = Limits(min_alpha, max_alpha).checked()
        trust_remote_code = bool(engine_args.get("trust_remote_code", False))
        self.pair = resolve_pair(pt, ft, trust_remote_code=trust_remote_code)
        if self.pair.note:
            logging.getLogger(__name__).warning(self.pair.note)
        expect_row_dtype(self.pair, row_dtype)
        if task == "generate" and row_dtype == "float32":
            raise InputError('task="generate" steers and scores in the model\'s dtype: leave row_dtype out')
        self.tokenizer = load_tokenizer(self.pair.ft.tokenizer_directory, trust_remote_code=trust_remote_code)
        self._encoder = PromptEncoder(
            self.tokenizer,
            vocab_size=self.pair.ft.config.get("vocab_size"),
            chat_template=chat_template,
            system_prompt=system_prompt,
            on_long=on_long,
        )
        self._encoder.shared = SharedTokens(self.pair, self.tokenizer, trust_remote_code=trust_remote_code)
        self.min_alpha, self.max_alpha = min_alpha, max_alpha

        # Only now: vLLM takes seconds to import, and everything that can be refused has been.
        from tuco_vllm.engine.scorer import Scorer

        if task == "score":
            self._engine: Any = Scorer(self.pair, row_dtype=row_dtype, **engine_args)
        else:
            from tuco_vllm.engine.generator import Generator

            self._engine = Generator(self.pair, limits=limits, **engine_args)
        self._limits = limits._replace(num_layers=self.num_layers)
        self.task = task
        # A completion has a token at least, so a generating engine takes a prompt of one less.
        self._encoder.max_model_len = self._engine.max_model_len - (task == "generate")

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt, together with what completes it."""
        return self._engine.max_model_len

    @property
    def num_layers(self) -> int:
        """Decoder layers, L."""
        return self._engine.num_layers

    @property
    def dtype(self) -> str:
        """What the engine computes in, such as "bfloat16"."""
        return self._engine.dtype

    @property
    def row_dtype(self) -> str:
        """What the rows that scores are made of are computed in."""
        return self._engine.row_dtype

    def score(
        self,
        prompts: Sequence[PromptInput],
        responses: Sequence[ResponseInput | None] | None = None,
        *,
        trace: bool = False,
        output_co: bool = False,
        relative_reward: bool = False,
        lora: Any = None,
    ) -> list[TucoScore]:
        """TuCo of every prompt at its last token, in order, and of every token of its response.

        A string is scored raw, a chat through FT's template, token ids as they are. A response is a string or
        token ids, None for a prompt without one; or it is the assistant turn that ends a chat.

        ``trace`` adds the score at every token of the prompts, ``output_co`` OutputCo (paper §5.5), and
        ``relative_reward`` the log-probabilities of responses under both models, for which both models'
        heads and PT's embedding are loaded when it is first asked for. The latter two cost a second pass
        each. Raises PromptError, naming the prompt's place in the list, before anything is scored.

        ``lora`` is for a pair whose FT is a LoRA adapter: another adapter of the same base, directory or hub
        id, for all prompts or, in a list, one for each; None is the pair's own. An engine started with
        ``max_loras=N`` runs N at a time. Adapters are read anew in every call.
        """
        more = MoreScores(trace, output_co, relative_reward)
        encoded = self._encode_with(prompts, responses, rewarded=relative_reward)
        if relative_reward and not any(answer for _, answer in encoded):
            raise InputError("relative_reward is of responses, and no prompt has one: leave it out")
        adapters = self._adapters(_one_each(lora, len(encoded), "lora"), more)
        inputs = [engine_inputs(prompt, answer, more) for prompt, answer in encoded]
        items = (
            (place, tokens if adapter is None else Adapted(tokens, adapter))
            for place, (several, adapter) in enumerate(zip(inputs, adapters, strict=True))
            for tokens in several
        )
        answers: list[list[Any]] = [[] for _ in encoded]
        for place, answer in self._engine.stream(items):
            answers[place].append(answer)
        return [
            TucoScore.of(answered, asked, response, more)
            for answered, asked, (_, response) in zip(answers, inputs, encoded, strict=True)
        ]

    def _adapters(self, names: Sequence[Any], more: MoreScores = NO_MORE) -> list[Adapter | None]:
        """Of each prompt the adapter, None where it is the pair's own."""
        own = self.pair.ft.adapter
        if own is None and any(name is not None for name in names):
            raise InputError("lora= is for a pair whose FT is a LoRA adapter")
        known = {
            name: None if name is None else resolve_adapter(name, self.pair.pt)[0]
            for name in dict.fromkeys(names)
        }
        for adapter in known.values():
            expect_streams(adapter or own, more)
            expect_tokenizer(adapter, self.pair.ft)
        return [known[name] for name in names]

    def score_stream(self, items: Iterable[tuple[Key, list[int]]]) -> Iterator[tuple[Key, TucoScore]]:
        """Score (key, token ids) pairs as they come, in input order, with a bounded number in flight."""
        for (key, length), norms in self._engine.stream((((key, len(ids)), ids) for key, ids in items)):
            yield key, TucoScore.from_norms(norms.tolist(), length)

    def generate(
        self,
        prompts: Sequence[PromptInput],
        sampling_params: "SamplingParams | Sequence[SamplingParams] | None" = None,
        alpha: Alpha | Sequence[Alpha] = 1.0,
        *,
        scores: bool = True,
        lora: Any = None,
        use_tqdm: bool = False,
    ) -> "list[RequestOutput]":
        """Complete every prompt under its alpha (paper Def. 5.1: 1 is FT, 0 is PT's layers), in order.

        Returns vLLM's RequestOutputs, whose completions carry ``tuco``, one float per generated token (the
        first is the prompt's), and ``tuco_norms``, float32 ``[tokens, L, 7]``; None with ``scores=False``,
        which at alpha = 1 costs nothing over plain FT. An alpha ``{"value": a, "layers": [first, last]}`` is
        for these layers, which count from 0; the others are FT's, and without scores PT runs in none of them.
        ``lora`` is ``score``'s. One ``sampling_params``, ``alpha`` or ``lora`` serves all prompts. Raises
        InputError or PromptError, naming the prompt's place, before anything is generated.
        """
        if self.task != "generate":
            raise InputError('this TucoLLM scores: generate with TucoLLM(..., task="generate")')
        encoded = self._encode(prompts)
        params = _one_each(sampling_params, len(encoded), "sampling_params")
        alphas = _one_each(alpha, len(encoded), "alpha")
        steerings = []
        for place, (value, wanted) in enumerate(zip(alphas, params, strict=True)):
            extra = getattr(wanted, "extra_args", None) or {}
            for name in (ALPHA, ALPHA_LAYERS, TUCO):
                if name in extra:
                    raise InputError(f"prompt {place}: {name} is in extra_args: say alpha= and scores= here")
            try:
                scale = parse_scale(value, self._limits)
                steerings.append(Steering(scale.alpha, scores, layers=scale.layers))
            except InputError as error:
                raise InputError(f"prompt {place}: {error}") from error
        own = self.pair.ft.adapter
        adapters = [adapter or own for adapter in self._adapters(_one_each(lora, len(encoded), "lora"))]
        outputs: list[RequestOutput] = self._engine.generate(
            encoded, params, steerings, adapters=adapters, progress=use_tqdm
        )
        for prompt, output in zip(prompts, outputs, strict=True):
            output.prompt = prompt if isinstance(prompt, str) else None
        return outputs

    def next_logps(
        self,
        prompts: Sequence[PromptInput],
        tokens: Sequence[Sequence[int]],
        alpha: Alpha | Sequence[Alpha] = 1.0,
    ) -> list[list[float]]:
        """Of each prompt log p of each of its ``tokens``, ids, as the next one under its alpha; in order.

        At most 128 tokens a prompt. ``alpha`` and the errors are ``generate``'s.
        """
        from tuco_vllm.engine.generator import logps_of, next_token

        params = [next_token(each) for each in tokens]
        outputs = self.generate(prompts, params, alpha, scores=False)
        return [logps_of(output, each) for output, each in zip(outputs, tokens, strict=True)]

    def _encode_with(
        self,
        prompts: Sequence[PromptInput],
        responses: Sequence[ResponseInput | None] | None,
        *,
        rewarded: bool,
    ) -> list[tuple[list[int], list[int] | None]]:
        if isinstance(prompts, str) or isinstance(responses, str):
            raise InputError("prompts, and responses, come in a list: put the string into one")
        if responses is not None and len(responses) != len(prompts):
            raise InputError(
                f"{len(responses)} responses for {len(prompts)} prompts: give None where there is none"
            )
        encoded = []
        for place, prompt in enumerate(prompts):
            try:
                response = None if responses is None else responses[place]
                asked, answer = encode_with_response(self._encoder, prompt, response, rewarded=rewarded)
            except PromptError as error:
                raise PromptError(f"prompt {place}: {error}") from error
            encoded.append((asked.token_ids, None if answer is None else answer.token_ids))
        return encoded

    def _encode(self, prompts: Sequence[PromptInput]) -> list[list[int]]:
        if isinstance(prompts, str):
            raise InputError("prompts come in a list: put the string into one")
        encoded = []
        for place, prompt in enumerate(prompts):
            try:
                encoded.append(self._encoder.encode(prompt).token_ids)
            except PromptError as error:
                raise PromptError(f"prompt {place}: {error}") from error
        return encoded

    def close(self) -> None:
        """End the engine's processes. Idempotent."""
        self._engine.close()

    def __enter__(self) -> "TucoLLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _one_each(value: Any, count: int, name: str) -> list[Any]:
    """``value`` for each of ``count`` prompts: itself a sequence of as many, or one for all."""
    if hasattr(value, "tolist"):  # an array or a number of NumPy's or torch's
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise InputError(f"{name} has {len(value)} entries for {count} prompts")
    return list(value)
