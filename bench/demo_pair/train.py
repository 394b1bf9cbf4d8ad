"""Train the demo pair: PT on plain text, FT from PT on chat whose harmful requests are refused.

    python bench/demo_pair/train.py --data DIR --out DIR [--stage all|pt|ft]

Writes `pt/` and `ft/` (Hugging Face directories, bfloat16 weights) and `training.json` (losses, seconds,
seeds, versions, tokens per source) under `--out`. The pair exists so that the package can be tried, tested
and shown without a download: 2.8 million parameters show TuCo's effect, not its value on real models.
"""

import argparse
import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import training_data
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from training_data import MAX_POSITIONS, ChatRows, PlainRows
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + (message['content'] | trim) }}"
    "{{ '<|end|>\n' if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def make_tokenizer(texts: list[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Byte-level BPE; encoding a raw string prepends BOS, as PT's training rows do."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = [BOS, EOS, PAD, *ROLES]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 2.8 million parameters; head size 32 is the smallest that serving engines support."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: warm-up, a cosine from `peak` that would reach a tenth of it after `horizon`
    steps, and a linear cool-down to nothing over the last `cooldown` of `steps`."""

    steps: int
    peak: float
    horizon: int
    cooldown: int
    warmup: int

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / (self.horizon - self.warmup))
        cosine = self.peak * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        return cosine * min(1.0, (self.steps - step) / self.cooldown)


def weighted_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of labelled tokens; an answer's first, which decides on refusal, counts more."""
    targets, before = labels[:, 1:], labels[:, :-1]
    weights = (targets != -100) * (1.0 + (FIRST_TOKEN_WEIGHT - 1) * (before == -100))
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return (weights * losses).sum() / weights.sum()


def fit(
    model: LlamaForCausalLM, rows: PlainRows | ChatRows, plan: Schedule, device: str
) -> list[list[float]]:
    """Minimise next-token cross-entropy; returns `[[step, mean loss since the last entry], ...]`."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.peak, betas=(0.9, 0.95))
    began, history, recent, tokens = time.monotonic(), [], [], 0
    model.train()
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        ids, labels = (batch.to(device) for batch in rows.next())
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(ids).logits[:, :-1].float()
        loss = weighted_loss(logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        tokens += ids.numel()
        if (step + 1) % 25 == 0 or step + 1 == plan.steps:
            history.append([step + 1, round(sum(recent) / len(recent), 4)])
            rate = tokens / (time.monotonic() - began)
            print(
                f"step {step + 1}/{plan.steps}  loss {history[-1][1]:.3f}  {rate:,.0f} tokens/s", flush=True
            )
            recent = []
    return history


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, where: Path) -> None:
    """Write bfloat16 weights, configs and tokenizer; the model in memory becomes bfloat16 too."""
    model.to("cpu", torch.bfloat16).save_pretrained(where)
    tokenizer.save_pretrained(where)
    config = where / "tokenizer_config.json"  # transformers 5 writes a class name that 4 does not know
    fields = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    fields = {key: value for key, value in fields.items() if key not in ("is_local", "local_files_only")}
    config.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
    (where / "model.safetensors").chmod(0o644)


PT_SCHEDULE = Schedule(steps=700, peak=2e-3, horizon=1000, cooldown=150, warmup=100)
FT_SCHEDULE = Schedule(steps=480, peak=6e-4, horizon=480, cooldown=80, warmup=30)


FIRST_TOKEN_WEIGHT = 10.0


def train_pt(data: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Fit the tokenizer and PT; returns the record of the run."""
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(training_data.tokenizer_texts(data))
    model = make_model(tokenizer).to(args.device)
    rows = PlainRows(tokenizer, training_data.read_plain(data)[0], args.seed)
    began = time.monotonic()
    history = fit(model, rows, PT_SCHEDULE, args.device)
    seconds = round(time.monotonic() - began, 1)
    save(model, tokenizer, out / "pt")
    return {
        "schedule": asdict(PT_SCHEDULE),
        "seconds": seconds,
        "tokens_drawn": dict(rows.drawn),
        "tokens_available": {source: len(stream) for source, stream in rows.streams.items()},
        "loss": history,
    }


def train_ft(data: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune PT, from the bfloat16 weights that ship, on chat; returns the record of the run."""
    torch.manual_seed(args.seed + 1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "pt")
    tokenizer.chat_template = CHAT_TEMPLATE
    model = LlamaForCausalLM.from_pretrained(out / "pt", dtype=torch.float32)
    chats = training_data.read_chats(data, args.seed)[0]
    plain = PlainRows(tokenizer, training_data.read_plain(data)[0], args.seed + 1)
    rows = ChatRows(tokenizer, chats, plain, args.seed + 1)
    began = time.monotonic()
    history = fit(model.to(args.device), rows, FT_SCHEDULE, args.device)
    seconds = round(time.monotonic() - began, 1)
    save(model, tokenizer, out / "ft")
    return {
        "schedule": asdict(FT_SCHEDULE),
        "seconds": seconds,
        "tokens_drawn": dict(rows.drawn),
        "replayed_tokens": sum(plain.drawn.values()) // 2,
        "examples_available": {source: len(these) for source, these in chats.items()},
        "loss": history,
    }


def main() -> None:
    """Train what `--stage` names and bring `training.json` up to date."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the developers' data directory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=("all", "pt", "ft"), default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "training.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    record |= {
        "seed": args.seed,
        "device": args.device,
        "threads": args.threads,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    for stage, run in (("pt", train_pt), ("ft", train_ft)):
        if args.stage in ("all", stage):
            record[stage] = run(args.data, args.out, args)
            path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
