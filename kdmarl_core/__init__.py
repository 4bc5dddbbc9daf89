"""KD-MARL without ROS: tasks, teachers, distillation and the bundles that cross to a robot."""

__version__ = "0.1.0"
