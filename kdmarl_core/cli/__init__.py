"""The `kdmarl` command: what needs no ROS. `kdmarl_ros.cli` adds what does."""
