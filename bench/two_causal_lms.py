"""Algorithm 1 as one first writes it with transformers: two causal LMs on a padded batch with its mask.

``Oracle``, the reference beside it, leaves out what a score does not need: the language-model head over all
tokens, and the mask (padding is on the right, so that attention never sees it and its fused causal form can
be used). This one leaves nothing out: ``AutoModelForCausalLM`` called as its documentation shows, padding on
the left as chat models' tokenizers put it, so that every prompt ends in the last column.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tuco_vllm import decomposition
from tuco_vllm.oracle import layer_updates


class TwoCausalLMs:
    """PT and FT, loaded whole."""

    def __init__(self, pt: str, ft: str, dtype: torch.dtype) -> None:
        def load(path: str) -> Any:
            return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True).eval()

        self._pt, self._ft = load(pt), load(ft)

    @torch.inference_mode()
    def norms(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Norms ``[B, L, 7]`` at each prompt's last token, in ``decomposition.NORM_COLUMNS``' order."""
        longest = max(map(len, prompts))
        ids_BT, mask_BT = (torch.zeros(len(prompts), longest, dtype=torch.long) for _ in range(2))
        for row, prompt in enumerate(prompts):
            ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_BT[row, longest - len(prompt) :] = 1
        last = torch.arange(len(prompts)), torch.full((len(prompts),), longest - 1)
        mask = {"attention_mask": mask_BT}
        inputs, ft_updates = layer_updates(self._ft, {"input_ids": ids_BT, **mask}, last)
        _, pt_updates = layer_updates(self._pt, {"inputs_embeds": inputs[0], **mask}, last, inputs)
        layers, ptc, ftc = [], torch.zeros(()), torch.zeros(())
        for f_pt, f_ft in zip(pt_updates, ft_updates, strict=True):
            ptc, ftc = ptc + f_pt, ftc + (f_ft - f_pt)
            layers.append(decomposition.norms(f_pt, f_ft - f_pt, ptc, ftc))
        return torch.stack(layers, dim=1)
