"""What a process imports: a robot's carries no training code, and the core knows no ROS."""

import json
import os
import pkgutil
import subprocess
import sys

import pytest

import kdmarl_core

HEAVY = ["torch", "jax", "jaxlib", "jaxmarl", "mpe2", "pettingzoo", "onnx", "matplotlib"]
CORE = sorted(
    module.name for module in pkgutil.walk_packages(kdmarl_core.__path__, "kdmarl_core.")
)


def python(code, folder):
    """Runs code in an interpreter of its own, away from the source tree."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def imported_by(code, folder):
    """Top-level names that are in `sys.modules` after the code."""
    done = python(f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))", folder)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout)} | set(
        json.loads(done.stdout)
    )


def test_a_robots_process_is_light(tmp_path):
    names = imported_by("import kdmarl_ros.policy_node", tmp_path)
    assert "onnxruntime" in names  # it is what was meant
    assert not names & set(HEAVY)
    assert "_hashlib" not in names  # OpenSSL, 3.5 MB of a process
    core = {name for name in names if name.startswith("kdmarl_core.")}
    assert {name.split(".")[1] for name in core} == {"bundle", "errors", "files", "schema"}


@pytest.mark.parametrize("module", ["policy_runtime", "safety"])
def test_decisions_and_safety_need_no_ros(module, tmp_path):
    names = imported_by(f"import kdmarl_ros.{module}", tmp_path)
    assert not names & {"rclpy", "std_msgs", "rcl_interfaces", *HEAVY}


def test_the_bundle_needs_numpy_and_onnxruntime_only(tmp_path):
    names = imported_by("import kdmarl_core.bundle", tmp_path)
    assert not names & {*HEAVY, "rclpy", "kdmarl_ros", "rich"}


def test_the_core_imports_with_ros_blocked(tmp_path):
    """Negative control included: the block does block."""
    assert len(CORE) > 30
    blocked = ["rclpy", "std_msgs", "rcl_interfaces", "launch", "kdmarl_ros", "ament_index_python"]
    block = f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
    done = python(block + "".join(f"import {name}\n" for name in CORE), tmp_path)
    assert done.returncode == 0, done.stderr
    assert python(block + "import kdmarl_ros.policy_node", tmp_path).returncode != 0


def test_help_is_light(tmp_path):
    """Describing the commands loads neither simulators nor torch nor ROS."""
    code = (
        "import contextlib\n"
        "from kdmarl_ros.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):\n"
        "    main(['--help'])"
    )
    assert not imported_by(code, tmp_path) & {*HEAVY, "rclpy"}
