"""Faults of clocks: simulated time that jumps or stands still, system time that is set.

Rows 12 and 13 of the fault table.
"""

import subprocess
import time

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State
from ros_driver import ROBOT, TRIES, driving
from rosgraph_msgs.msg import Clock

from kdmarl_ros.msg import AgentAction

pytestmark = pytest.mark.ros

# The system's time plus as many seconds as a file says; steady time is left alone.
SHIFTED_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, now);
    if (id == CLOCK_REALTIME) {
        FILE *file = fopen(getenv("CLOCK_SHIFT"), "r");
        long seconds = 0;
        if (file) {
            if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
            fclose(file);
        }
        now->tv_sec += seconds;
    }
    return result;
}
"""


@pytest.fixture
def sensors(domain, policies):
    with driving(domain, policies[0].manifest) as driver:
        yield driver


@pytest.fixture
def node(start_node, bundles):
    def start(*more):
        return start_node(
            "policy_node", "-r", f"__ns:=/{ROBOT}", "-p", f"bundle:={bundles / ROBOT}",
            "-p", "mode:=real_time", "-p", "rate_hz:=20.0", "-p", "timeout_s:=0.5", *more,
        )  # fmt: skip

    return start


def test_simulated_time_may_jump_or_stand_still(sensors, node):
    child = node("-p", "use_sim_time:=true")
    sensors.until_listened_to()
    now_s = 1000.0

    def tick(seconds=0.02, **how):
        nonlocal now_s
        now_s += seconds
        sensors.clock.publish(Clock(clock=Time(sec=int(now_s), nanosec=int(now_s % 1 * 1e9))))

    def work():
        tick()
        sensors.send_new()

    def acts():
        first = sensors.step + 1
        sensors.until(lambda: any(a.step >= first for a in sensors.chosen()), meanwhile=work)

    acts()
    for jumps, jump_s in enumerate((-500.0, 3600.0), 1):
        sensors.actions.clear()
        tick(jump_s)
        sensors.until(
            lambda n=jumps: child.log.read_text().count("clock has jumped") >= n, meanwhile=tick
        )
        # Nothing from before the jump is acted on.
        sensors.until(
            lambda: any(a.status == AgentAction.STATUS_SAFE for a in sensors.actions),
            meanwhile=tick,
        )
        acts()
    # The clock stands still, and with it the sensors: safe, but not their fault.
    sensors.until_reported("stands still", "stale", level=DiagnosticStatus.WARN)
    sensors.until(lambda: sensors.actions[-1].status == AgentAction.STATUS_SAFE)
    acts()
    # The clock runs without them: their fault.
    sensors.until_reported("stale", level=DiagnosticStatus.ERROR, meanwhile=tick)
    acts()
    assert sensors.state() == State.PRIMARY_STATE_ACTIVE


def test_setting_the_system_time_neither_stops_nor_blinds_the_robot(
    sensors, node, tmp_path, monkeypatch
):
    (tmp_path / "clock.c").write_text(SHIFTED_CLOCK)
    library = tmp_path / "clock.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"], check=True
    )
    shift = tmp_path / "shift"
    shift.write_text("0")
    monkeypatch.setenv("CLOCK_SHIFT", str(shift))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    node()
    monkeypatch.delenv("LD_PRELOAD")
    sensors.until_listened_to()
    sensors.until_acting()
    for seconds in (7200, -7200, 0):
        shift.write_text(str(seconds))
        sensors.until(lambda: len(sensors.actions) > 0)
        for _ in range(TRIES):
            sensors.until_acting()
            sensors.actions.clear()
            first = sensors.step
            sensors.stream_until(lambda n=first: sensors.step > n + 30)
            if all(a.status == AgentAction.STATUS_POLICY for a in sensors.actions):
                break
        else:
            pytest.fail("it is safe although its sensors go on")
        stamps = {a.header.stamp.sec for a in sensors.actions}
        assert stamps  # the shift is real: the node's stamps show it
        assert abs(min(stamps) - time.time() - seconds) < 60
        # Silence is noticed all the same.
        sensors.until(lambda: sensors.actions[-1:] and sensors.actions[-1].status)
        sensors.until_acting()
