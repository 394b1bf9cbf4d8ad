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
        together: so many engines must have been given work before the first of them does any.
    """

    def __init__(self, place=0, engines=1, *, folder, poison=(), deadly=(), kill_at=(), together=1):
        super().__init__()
        (Path(folder) / f"engine-{os.getpid()}").touch()
        self._folder, self._together = Path(folder), together
        self._poison, self._deadly, self._kill_at = map(list, (poison, deadly, kill_at))
        self._dead = False

    def step(self):
        if self._dead:
            raise EngineError("boom")
        if self._together > 1:
            self._wait_for_the_others()
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

    def _wait_for_the_others(self):
        (self._folder / f"working-{os.getpid()}").touch()
        while len(list(self._folder.glob("working-*"))) < self._together:
            time.sleep(0.01)
        self._together = 1

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
