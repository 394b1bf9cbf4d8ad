"""A GGUF file -> a Hugging Face directory in bfloat16: dequantise.py FILE.gguf OUT."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

source, out = Path(sys.argv[1]), sys.argv[2]
tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
# transformers does not save what it takes for quantised: the same weights in a model without that mark.
apart = ("quantization_config", "dtype", "architectures")
config = {name: value for name, value in loaded.config.to_dict().items() if name not in apart}
model = LlamaForCausalLM(LlamaConfig(**config, architectures=["LlamaForCausalLM"]))
missing, unexpected = model.load_state_dict(loaded.state_dict(), strict=False)
if unexpected or not set(missing) <= {"lm_head.weight"}:
    raise SystemExit(f"not the model that was expected: {missing}, {unexpected}")
model.tie_weights()
tokenizer.save_pretrained(out)
model.to(torch.bfloat16).save_pretrained(out)
