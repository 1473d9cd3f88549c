"""The bank of individuals that the scenes are staffed from, built when first needed."""

from __future__ import annotations

import threading
import zlib

import numpy as np

from prepare_data.diorama.anatomy import find_species, sample_anatomy
from prepare_data.diorama.body import Body, build_body


def stranger_count(identities: int) -> int:
    """Individuals of every species but the world's own."""
    return max(2, identities // 6)


class Zoo:
    """Individuals by species and number; the same seed gives the same individuals.

    Args:
        seed: the world's seed.
        keypoint_names: landmarks to carry, in the skeleton's order.
        variety: 0 to 1, how far individuals stray from their species' plan.
    """

    def __init__(self, seed: int, keypoint_names: tuple[str, ...], variety: float = 0.5) -> None:
        self.seed = seed
        self.keypoint_names = tuple(keypoint_names)
        self.spread = 0.6 + 0.8 * variety
        self._bodies: dict[tuple[str, int], Body] = {}
        self._locks: dict[tuple[str, int], threading.Lock] = {}
        self._guard = threading.Lock()

    def body(self, species: str, number: int) -> Body:
        """Individual ``number`` of a species; built at most once, also from several threads."""
        key = (species, number)
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._bodies:
                salt = zlib.crc32(species.encode())
                rng = np.random.default_rng([self.seed, salt, number])
                anatomy = sample_anatomy(find_species(species), rng, self.spread)
                self._bodies[key] = build_body(anatomy, self.keypoint_names)
            return self._bodies[key]
