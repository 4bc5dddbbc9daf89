"""KD-MARL on robots: nodes, launch and the swarm, over ROS 2."""
