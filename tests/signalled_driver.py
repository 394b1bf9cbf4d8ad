"""`tuco score` with slow fake engines, for the tests of signals: python tests/signalled_driver.py score ...

Everything else is the command's own: how it takes signals, its imports, Ray.
"""

import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from types import SimpleNamespace

from tuco_vllm.__main__ import main

PIPELINE = "tuco_vllm.corpus.pipeline"
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


def pipeline_of(job, pair, cluster, engine_args):
    from fake_scorer import make_encoder

    del sys.modules[PIPELINE]
    return import_module(PIPELINE).Pipeline(cluster, start_engine, partial(make_encoder, pair.ft.directory))


if __name__ == "__main__":
    sys.modules[PIPELINE] = SimpleNamespace(pipeline_of=pipeline_of)  # Ray is imported when it is its turn
    sys.exit(main())
