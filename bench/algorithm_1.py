"""The paper's Algorithm 1 in plain Hugging Face: what tuco_vllm computes, for who has five minutes.

    python bench/algorithm_1.py PT FT "a prompt" ...

Two models, two forward passes: the price that the rest of this repository does not pay. FT runs as it is, and
the input x_l of each of its layers is kept; each of PT's layers then runs on FT's x_l in place of its own.

    PTC_l = f_PT(x_l)            what the pre-trained layer would have added
    FTC_l = f_FT(x_l) - PTC_l    what fine-tuning adds to that
    TuCo  = |sum FTC|_1 / (|sum PTC|_1 + |sum FTC|_1)    at the prompt's last token

Shape suffixes: T tokens, H hidden size.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def updates(model, inputs, replaced=None):
    """Run the model; return each layer's input x_TH and its update at the last token f_H.

    With ``replaced`` each layer gets that x_TH for its input, whatever came before it.
    """
    xs, fs = [], []

    def before(layer, args, kwargs):
        x_1TH = args[0] if replaced is None else replaced[len(xs)]
        xs.append(x_1TH)
        return (x_1TH, *args[1:]), kwargs

    def after(layer, args, kwargs, out):
        out_1TH = out[0] if isinstance(out, tuple) else out
        fs.append((out_1TH - args[0])[0, -1])

    hooks = []
    for layer in model.model.layers:
        hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(layer.register_forward_hook(after, with_kwargs=True))
    with torch.inference_mode():
        model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return xs, fs


def tuco(pt, ft, ids):
    """TuCo of one prompt ``ids`` [1, T]. float32 models or wider: in 16 bits the differences are rounding."""
    xs, f_ft = updates(ft, {"input_ids": ids})
    _, f_pt = updates(pt, {"inputs_embeds": xs[0]}, xs)
    ptc_H = sum(f_pt)
    ftc_H = sum(f_ft) - ptc_H
    return (ftc_H.abs().sum() / (ptc_H.abs().sum() + ftc_H.abs().sum())).item()


if __name__ == "__main__":
    pt, ft = (AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32) for name in sys.argv[1:3])
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
    for prompt in sys.argv[3:]:
        print(f"{tuco(pt, ft, tokenizer(prompt, return_tensors='pt').input_ids):.6f}  {prompt!r}")
