"""Fake engines for Ray's workers that die in every way an engine can; imported there by name."""

import os
import signal
import time
from pathlib import Path

from fake_scorer import FakeScorer

from tuco_vllm.errors import EngineError


class DeadlyScorer(FakeScorer):
    """Dies of prompts, or once at a number of rows.

    Args:
        folder: where it leaves a mark for each death, so that what happens once happens once.
        poison: token ids that an engine dies of whenever it runs them; its process survives.
        deadly: token ids that kill the engine's process.
        kill_at: numbers of scored rows at which the process is killed, once each in the whole job.
        together: so many engines must have come before the first of them works.
    """

    def __init__(self, place=0, engines=1, *, folder, poison=(), deadly=(), kill_at=(), together=1):
        super().__init__()
        (Path(folder) / f"engine-{os.getpid()}").touch()
        while len(list(Path(folder).glob("engine-*"))) < together:
            time.sleep(0.01)
        self._folder = Path(folder)
        self._poison, self._deadly, self._kill_at = map(list, (poison, deadly, kill_at))
        self._dead = False

    def step(self):
        if self._dead:
            raise EngineError("boom")
        running = [ids for _, ids in list(self._queue)[: self._window]]
        if any(ids in self._deadly for ids in running):
            self._mark("deadly")
            os.kill(os.getpid(), signal.SIGKILL)
        if any(ids in self._poison for ids in running):
            self._mark("poison")
            self._dead = True
            raise EngineError("boom")
        done = super().step()
        for rows in self._kill_at:
            if self.scored >= rows and self._mark(f"kill-{rows}", once=True):
                os.kill(os.getpid(), signal.SIGKILL)
        return done

    def _mark(self, name, *, once=False):
        if not once:
            name += f"-{os.getpid()}-{self.scored}-{id(self)}"
        try:
            (self._folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def without_memory(place, engines):
    """An engine that does not start."""
    raise EngineError("the vLLM engine did not start: no memory")
