"""KD-MARL on robots: nodes, launch and the swarm, over ROS 2."""

import sys

# Where message generation is installed, every message package imports it, parser and all: 3 MB
# that no robot needs. It is optional by its own design: take it out before anything asks for it.
sys.modules.setdefault("rosidl_generator_py.generate_py_impl", None)  # type: ignore[arg-type]
