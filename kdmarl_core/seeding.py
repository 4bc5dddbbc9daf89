"""Seeds that depend on a base seed and an index, the same on every machine."""

import numpy as np


def derive_seed(*parts: int) -> int:
    """A 31-bit seed that depends on all parts, so that streams of draws do not overlap."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)
