"""Rows as ``tuco score`` gives them to bench/paper."""

from typing import Any


def row(group: str, behaviour: str, tuco: float | None, tokens: int = 20, **more: Any) -> dict[str, Any]:
    """Scored, without an error unless ``more`` has one."""
    own = {"id": f"{group}:{behaviour}", "group": group, "behaviour": behaviour, "tuco": tuco}
    return {**own, "prompt_tokens": tokens, "error": None, **more}
