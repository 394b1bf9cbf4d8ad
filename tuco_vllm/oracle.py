"""The truth: Algorithm 1 on two Hugging Face models in float64, for any decoder-only family.

No family is named here. FT runs as it is, and every decoder layer's input x_l is kept; then PT's own
forward runs with each layer's input replaced by FT's x_l, so whatever that family does between layers
(masks, rope, windows) is done by PT's own code. The update is ``layer output - layer input``, which loses
nothing in float64 (``decomposition`` says why 16 bits may not do this).

Two passes over all tokens: this is what the executor is measured against, for truth and for speed.

Shape suffixes: B prompts, T tokens, L layers, H hidden size.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModel

from tuco_vllm import decomposition, metrics
from tuco_vllm.adapter import Adapter
from tuco_vllm.adapter_hooks import put_on
from tuco_vllm.records import TucoScore


class Oracle:
    """A pair of Hugging Face models that scores prompts by two full forward passes.

    Args:
        pt, ft: model directories or hub ids, safetensors.
        dtype: float64 is the oracle; other dtypes give Hugging Face's own error, and the speed baseline.
        device: where both models run.
        attention: Hugging Face's ``attn_implementation``. Only "eager" knows all that a family may ask for:
            "sdpa", its default and the speed baseline's, drops soft-caps without a word.
        from_disk: leave the weights in their files and read each as it is used (by accelerate), on a CPU: any
            pair fits, at a reading of both a call.
        adapter: what FT has beside the weights of ``ft``, which is then its base.
    """

    def __init__(
        self,
        pt: str | Path,
        ft: str | Path,
        *,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        attention: str = "eager",
        from_disk: bool = False,
        adapter: Adapter | None = None,
    ) -> None:
        def load(path: str | Path) -> nn.Module:
            return AutoModel.from_pretrained(
                path,
                dtype=dtype,
                use_safetensors=True,
                attn_implementation=attention,
                experts_implementation="eager",  # the grouped product of experts refuses float64
                device_map={"": "disk" if from_disk else device},
                # Only weights that are no tensor of a file (experts joined into one) are written there.
                offload_folder=self._converted.name,
            ).eval()

        self._converted = TemporaryDirectory(prefix="tuco-oracle-")
        self.pt, self.ft = load(pt), load(ft)
        if adapter is not None:
            put_on(self.ft, adapter, dtype)
        self.dtype, self.device = dtype, device

    def score(self, token_ids: Sequence[int]) -> TucoScore:
        """TuCo of one prompt at its last token."""
        return self.score_batch([token_ids])[0]

    def score_batch(self, prompts: Sequence[Sequence[int]]) -> list[TucoScore]:
        """One padded batch. Padding is on the right, where causal attention never looks from the left."""
        norms_BL7 = self.norms(prompts).tolist()
        return [TucoScore.from_norms(n, len(p)) for n, p in zip(norms_BL7, prompts, strict=True)]

    @torch.inference_mode()
    def norms(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Norms ``[B, L, 7]`` at each prompt's last token, in ``decomposition.NORM_COLUMNS``' order."""
        if not all(len(prompt) for prompt in prompts):
            raise ValueError("an empty prompt has no last token to score")
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        ids_BT = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long, device=self.device)
        for row, prompt in enumerate(prompts):
            ids_BT[row, : len(prompt)] = torch.tensor(prompt)
        batch = torch.arange(len(prompts), device=self.device)

        with _Float64Stays():
            inputs, ft_updates = layer_updates(self.ft, {"input_ids": ids_BT}, (batch, lengths - 1))
            _, pt_updates = layer_updates(self.pt, {"inputs_embeds": inputs[0]}, (batch, lengths - 1), inputs)
            layers, ptc, ftc = [], torch.zeros(()), torch.zeros(())
            for f_pt, f_ft in zip(pt_updates, ft_updates, strict=True):
                ptc, ftc = ptc + f_pt, ftc + (f_ft - f_pt)
                layers.append(decomposition.norms(f_pt, f_ft - f_pt, ptc, ftc))
            return torch.stack(layers, dim=1)

    @torch.inference_mode()
    def output_co(self, token_ids: Sequence[int]) -> float:
        """OutputCo (§5.5) at a prompt's last token: PT's layers on a stream of their own, from FT's x_0."""
        last = torch.tensor([0]), torch.tensor([len(token_ids) - 1])
        with _Float64Stays():
            ids_1T = torch.tensor([list(token_ids)], device=self.device)
            ft_inputs, ft_updates = layer_updates(self.ft, {"input_ids": ids_1T}, last)
            embeds, first = {"inputs_embeds": ft_inputs[0]}, [ft_inputs[0]]
            pt_inputs, pt_updates = layer_updates(self.pt, embeds, last, first)
        ft, pt = (run[0][-1][last] + run[1][-1] for run in ((ft_inputs, ft_updates), (pt_inputs, pt_updates)))
        return metrics.output_co(pt.abs().sum().item(), (ft - pt).abs().sum().item())

    @torch.inference_mode()
    def steer(
        self, token_ids: Sequence[int], alpha: float, layers: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The stream x + PTC + alpha FTC (Def. 5.1) of one sequence, at all of its T tokens; with ``layers``
        only from the one to the other, both included, and FT's elsewhere.

        Returns the norms of the unscaled contributions on it ``[T, L, 7]``, and FT's final hidden states
        ``[T, H]``, its last norm included.
        """
        ids_1T = torch.tensor([list(token_ids)], device=self.device)
        first, last = layers or (0, len(decoder_layers(self.ft)) - 1)
        norms: list[Tensor] = []
        sums = [torch.zeros((), dtype=self.dtype)] * 2

        with _Float64Stays():
            # What PT's layers are called with besides the stream depends on positions only: one pass tells.
            ft: Any = self.ft
            calls = _layer_arguments(self.pt, ft.get_input_embeddings()(ids_1T))

            def steered(index: int) -> Callable[..., Any]:
                def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
                    x = args[0] if args else kwargs["hidden_states"]
                    out = output[0] if isinstance(output, tuple) else output
                    pt_args, pt_kwargs = calls[index]
                    pt_out = pt_layers[index](x, *pt_args, **pt_kwargs)
                    pt_out = pt_out[0] if isinstance(pt_out, tuple) else pt_out
                    ptc, ftc = pt_out - x, (out - x) - (pt_out - x)
                    sums[0], sums[1] = sums[0] + ptc, sums[1] + ftc
                    norms.append(decomposition.norms(ptc[0], ftc[0], sums[0][0], sums[1][0]))
                    if alpha == 1.0 or not first <= index <= last:
                        return output
                    new = x + ptc + alpha * ftc
                    return (new, *output[1:]) if isinstance(output, tuple) else new

                return hook

            pt_layers = decoder_layers(self.pt)
            handles = [
                layer.register_forward_hook(steered(index), with_kwargs=True)
                for index, layer in enumerate(decoder_layers(self.ft))
            ]
            try:
                hidden_1TH = self.ft(input_ids=ids_1T, use_cache=False).last_hidden_state
            finally:
                for handle in handles:
                    handle.remove()
        return torch.stack(norms, dim=1), hidden_1TH[0]


def _layer_arguments(model: Any, embeds: Tensor) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What each decoder layer is called with besides the stream."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args[1:], {key: value for key, value in kwargs.items() if key != "hidden_states"}))

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in decoder_layers(model)]
    try:
        model(inputs_embeds=embeds, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def decoder_layers(model: Any) -> nn.ModuleList:
    """The model's stack of decoder layers: its one ModuleList of ``num_hidden_layers`` modules."""
    wanted = model.config.get_text_config().num_hidden_layers
    for module in getattr(model, "language_model", model).modules():  # of models that read images too
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {wanted} decoder layers")


def layer_updates(
    model: nn.Module,
    inputs: dict[str, Tensor],
    last: tuple[Tensor, Tensor],
    replace: Sequence[Tensor] = (),
) -> tuple[list[Tensor], list[Tensor]]:
    """One forward. Returns every layer's input ``[B, T, H]`` and its update at the last tokens ``[B, H]``.

    With ``replace``, the first so many layers get these for their inputs, whatever came before them.
    """
    layer_inputs: list[Tensor] = []
    updates: list[Tensor] = []

    def before(index: int) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x_BTH = args[0] if args else kwargs["hidden_states"]
            if index >= len(replace):
                layer_inputs.append(x_BTH)
                return None
            layer_inputs.append(replace[index])
            if args:
                return (replace[index], *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": replace[index]}

        return hook

    def after(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            out_BTH = output[0] if isinstance(output, tuple) else output
            updates.append(out_BTH[last] - layer_inputs[index][last])

        return hook

    handles = []
    for index, layer in enumerate(decoder_layers(model)):
        handles.append(layer.register_forward_pre_hook(before(index), with_kwargs=True))
        handles.append(layer.register_forward_hook(after(index)))
    try:
        model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return layer_inputs, updates


class _Float64Stays(TorchFunctionMode):
    """Hugging Face's norms say ``x.to(torch.float32)``, which would *narrow* a float64 model.

    Inside this mode a float64 tensor asked to become float32 stays as it is. Rope angles, which the model
    defines in float32 from integers, never are float64 and keep their definition.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        wide = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        if wide and func is Tensor.float:
            return args[0]
        if wide and func is Tensor.to:
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        if wide and kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
