"""A tiny pair that ships with the package: ``PT`` and ``FT`` are its directories (see MODEL_CARD.md)."""

from pathlib import Path

PT = Path(__file__).parent / "pt"
FT = Path(__file__).parent / "ft"
