"""PT -> FT, or an adapter: finetune.py PT OUT ROWS.jsonl [--steps N] [--lora]. Loss on answers only.

Each step has as many harmful as harmless rows. Weights and their updates are float32. bfloat16 is saved, of
an adapter float32.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH, LONGEST = 8, 192
RATES = {"full": 5e-5, "lora": 4e-4}
WARM_UP = 8
"""Steps until the rate is there; it falls to a tenth by the end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pt")
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lora", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.pt)
    model = AutoModelForCausalLM.from_pretrained(arguments.pt, dtype=torch.float32)
    if arguments.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    rows = [json.loads(line) for line in arguments.rows.read_text().split("\n") if line]
    kinds = [[encoded(tokenizer, row) for row in rows if row["harmful"] is kind] for kind in (True, False)]
    start = time.monotonic()
    losses = fit(model, kinds, arguments.steps, RATES["lora" if arguments.lora else "full"], arguments.seed)
    if not arguments.lora:
        model = model.to(torch.bfloat16)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    said = {
        "steps": arguments.steps,
        "sequences": arguments.steps * BATCH,
        "first_loss": losses[0],
        "last_loss": sum(losses[-10:]) / len(losses[-10:]),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "trained_parameters": sum(each.numel() for each in model.parameters() if each.requires_grad),
    }
    (arguments.out / "trained.json").write_text(json.dumps(said))


def encoded(tokenizer, row) -> tuple[list[int], list[int]]:
    """Token ids, and which of them are learnt: the answer's, and its end where it came to one."""
    chat = [{"role": "user", "content": row["prompt"]}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    ids = asked["input_ids"]
    end = tokenizer.eos_token if row.get("whole", True) else ""
    answer = tokenizer(row["answer"] + end, add_special_tokens=False)["input_ids"]
    return (ids + answer)[:LONGEST], ([-100] * len(ids) + answer)[:LONGEST]


def fit(model, kinds, steps: int, rate: float, seed: int) -> list[float]:
    draw = random.Random(seed)
    weights = [each for each in model.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    model.train()
    losses = []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * min(1, (step + 1) / WARM_UP) * (1 - 0.9 * step / steps)
        batch = [row for kind in kinds for row in draw.sample(kind, BATCH // 2)]
        longest = max(len(ids) for ids, _ in batch)
        ids, labels, mask = (
            torch.tensor([row + [pad] * (longest - len(row)) for row in part])
            for part, pad in (
                ([ids for ids, _ in batch], 0),
                ([labels for _, labels in batch], -100),
                ([[1] * len(ids) for ids, _ in batch], 0),
            )
        )
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if step % 5 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.eval()
    return losses


if __name__ == "__main__":
    main()
