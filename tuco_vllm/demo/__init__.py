"""A tiny pair that ships with the package, ``PT`` and ``FT`` (see MODEL_CARD.md), and prompts for it."""

from pathlib import Path

PT = Path(__file__).parent / "pt"
FT = Path(__file__).parent / "ft"
PROMPTS = Path(__file__).parent / "prompts.jsonl"
