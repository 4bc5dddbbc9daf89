"""Seeds that depend on a base seed and an index, the same on every machine."""

import numpy as np


def derive_seed(*parts: int) -> int:
    """A 31-bit seed that depends on all parts: streams of draws with other parts do not overlap.

    Zeros at the end do not count: (5, 2) and (5, 2, 0) give the same seed.
    """
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)
