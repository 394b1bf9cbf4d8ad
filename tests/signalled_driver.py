"""`tuco score` with slow fake engines, for the tests of signals: python tests/signalled_driver.py score ...

Everything else is the command's own: how it takes signals, its imports, Ray.
"""

import subprocess
import sys
import time
from importlib import import_module
from types import SimpleNamespace

from tuco_vllm.__main__ import main

DRIVER = "tuco_vllm.corpus.driver"
ENGINE = "an engine's process"


def start_engine(place, engines):
    """An engine that takes its time, with a process of its own as vLLM's have."""
    from fake_scorer import FakeScorer

    from tuco_vllm.engine.start_stages import tell

    class SlowScorer(FakeScorer):
        def step(self):
            time.sleep(0.3)
            return super().step()

    subprocess.Popen([sys.executable, "-c", f"{ENGINE!r}; import time; time.sleep(600)"])
    tell("weights")
    time.sleep(1)
    return SlowScorer(window=64)


def workers(cluster, _, make_encoder):
    del sys.modules[DRIVER]
    return import_module(DRIVER).Workers(cluster, start_engine, make_encoder)


if __name__ == "__main__":
    sys.modules[DRIVER] = SimpleNamespace(Workers=workers)  # Ray is imported when it is its turn
    sys.exit(main())
