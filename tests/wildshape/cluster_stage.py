"""Stages that workers of a cluster import: a module of their own, found by its name on every worker."""

import os
import time

from slow_stage import Doubler

from wildshape.errors import UserError


class Worker(Doubler):
    """Doubles, logs, and writes down which process did what."""

    def __init__(self, pids=None, delay=0.0, bad=None):
        super().__init__(delay=delay)
        self.pids, self.bad = pids, bad

    def __call__(self, batch):
        if self.bad in list(batch["instance_id"]):
            raise UserError("expected an image in x.jpg; found none")
        if self.pids is not None:
            with open(self.pids, "a") as handle:
                handle.write(f"{os.getpid()} {batch['instance_id'][0]}\n")
        time.sleep(self.delay)
        for name in batch["instance_id"]:
            self.note({"instance_id": name, "length": len(name)})
        return super().__call__(batch)
