"""A calibration around the fake vLLM's scores, of which choice 0's are the highest."""

from types import MappingProxyType

from tuco_vllm.flagging import Bucket, Flags
from tuco_vllm.server.checks import Checker

CHATS = "c" * 64
BUCKETS = (Bucket(5, 20, 0.505),)


def flags(**changes) -> Flags:
    told = {"pt_fingerprint": "p", "ft_fingerprint": "f", "ft": "org/chat", "path": "flags.json"}
    told |= {"dtype": "float32", "row_dtype": "float32", "column": "tuco", "direction": "above", "fpr": 0.05}
    told["templates"] = MappingProxyType({None: BUCKETS, CHATS: BUCKETS})
    return Flags(**{**told, **changes})


def checker(name="m", **changes) -> Checker:
    """``name`` is what metrics call the model: a test of its own counters takes one of its own."""
    return Checker(flags(**changes), CHATS, ["m", "alias"], name)
