"""How far long work is, where nobody looks at a terminal."""

from kdmarl_core.cli import common


def test_a_log_says_now_and_then_how_far_work_is(monkeypatch, capsys):
    now_s = [100.0]
    monkeypatch.setattr(common.console, "get_time", lambda: now_s[0])
    with common.progress_bar() as bar:
        line = bar.add_task("a [team]: on-policy", total=400, figures="")
        for done in range(1, 131):
            now_s[0] += 1.0
            bar.update(line, completed=done, figures=f"KL {done / 1000:.3f}")
    printed = capsys.readouterr()
    assert printed.out == ""
    first, second = printed.err.splitlines()
    assert first.startswith("a [team]: on-policy: 60 of 400, KL 0.060, 0:01:00 elapsed, ")
    assert second.startswith("a [team]: on-policy: 120 of 400, KL 0.120, 0:02:00 elapsed, ")
    assert second.endswith("0:04:40 left")


def test_short_work_says_nothing(capsys):
    with common.progress_bar() as bar:
        line = bar.add_task("short", total=2, figures="")
        bar.update(line, completed=2)
    assert capsys.readouterr() == ("", "")
