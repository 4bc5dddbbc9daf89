"""The first Ctrl-C asks, the second insists."""

import os
import signal
import threading

import pytest

from kdmarl_core.interrupt import deferred_interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks(number):
    before = signal.getsignal(number)
    with deferred_interrupt() as requested:
        assert not requested.is_set()
        os.kill(os.getpid(), number)
        assert requested.is_set()
    assert signal.getsignal(number) is before


def test_the_second_signal_insists():
    before = signal.getsignal(signal.SIGINT)

    def impatient():
        with deferred_interrupt() as requested:
            os.kill(os.getpid(), signal.SIGINT)
            assert requested.is_set()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        impatient()
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with deferred_interrupt() as requested:
            seen.append((requested.is_set(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
