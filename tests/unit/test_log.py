from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import re
import resource
import stat
import sys
import threading
import time
import timeit

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from pyfrp import log
from pyfrp.errors import ConfigError
from pyfrp.log import sinks

NOON = 1795348800.0  # 2026-11-22 12:00:00 UTC
DAY = 86400


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    log.configure()
    logging.getLogger().removeHandler(log._from_logging)
    structlog.reset_defaults()
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def lines(tmp_path, clock):
    """Log to a file; call for the lines written so far."""
    path = tmp_path / "frps.log"
    log.configure("trace", str(path), clock=clock)
    return lambda: path.read_text().splitlines()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- the line ----------------------------------------------------------------------------------


def test_line_has_frps_format(lines, clock):
    clock.now = NOON + 0.8501
    log.get_logger().bind(run_id="2b63", proxy="web").info("proxy started", remote_port=6000)
    log.get_logger().info("nobody serves this", proxy="", host="")
    line, empty = lines()
    assert re.fullmatch(
        r"2026-11-22 12:00:00\.850 \[I\] \[unit/test_log\.py:\d+\] \[2b63\] \[web\] "
        r"proxy started remote_port=6000",
        line,
    )
    assert empty.endswith('] nobody serves this host=""')
    assert "[]" not in empty


def test_each_level_has_its_letter(lines):
    logger = log.get_logger()
    for name in ("trace", "debug", "info", "warning", "warn", "error", "critical"):
        getattr(logger, name)(name)
    assert [re.search(r"\[(\w)\] ", line)[1] for line in lines()] == list("TDIWWEE")


def test_caller_is_the_line_that_logs(lines):
    log.get_logger().info("here")
    expected = sys._getframe().f_lineno - 1
    assert f"[unit/test_log.py:{expected}] here" in lines()[0]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (6000, "6000"),
        ("word", "word"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("two words", '"two words"'),
        ("", '""'),
        ('say "x"', '"say \\"x\\""'),
        ("a=b", '"a=b"'),
        ("back\\slash", '"back\\\\slash"'),
        (True, "true"),
        (0.1 + 0.2, "0.3"),
        (None, "None"),
        (["a", "b"], "\"['a', 'b']\""),
        (ValueError("bad"), "bad"),
        (TimeoutError(), "TimeoutError"),
        ("한글", "한글"),
        ("x\x1b[31m\r\n", '"x\\x1b[31m\\r\\n"'),
    ],
)
def test_value_is_bare_if_one_word_and_quoted_otherwise(lines, value, shown):
    log.get_logger().info("event", key=value)
    assert lines()[0].endswith(f" event key={shown}")


def test_control_characters_of_a_peer_cannot_make_lines_or_colours(lines):
    logger = log.get_logger().bind(proxy="web\n2026-11-22")
    logger.info("hello\x1b[31m\r\nfake\u2028line\udcff", who="\x00")
    (line,) = lines()
    assert "\\x1b[31m\\r\\nfake\\u2028line\\udcff" in line
    assert "[web\\n2026-11-22]" in line
    assert line.isprintable()


def test_over_long_text_is_cut(lines):
    log.get_logger().info("e" * 10000, value="v" * 10000)
    assert len(lines()[0]) < 6000
    assert "(5904 more)" in lines()[0]
    assert "(8976 more)" in lines()[0]


@given(st.text(max_size=300))
def test_clean_text_is_printable_and_bounded(text):
    cleaned = log.clean(text, 20)
    assert cleaned.isprintable()
    assert len(cleaned) <= 20 * len("\\U00000000") + len("... (280 more)")
    if text.isprintable() and len(text) <= 20:
        assert cleaned == text


def test_exception_gives_the_traceback_indented(lines):
    try:
        raise ValueError("boom\x1b")
    except ValueError:
        log.get_logger().exception("internal error")
    first, *rest = lines()
    assert "[E]" in first
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == "    ValueError: boom\\x1b"


def test_exc_info_of_another_time_is_shown_too(lines):
    log.get_logger().warning("failed", exc_info=ValueError("earlier"))
    assert lines()[-1] == "    ValueError: earlier"


def test_value_that_cannot_be_shown_harms_nobody(lines):
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    log.get_logger().info("event", key=Broken())
    assert "unprintable event: RuntimeError('no')" in lines()[0]


def test_level_filters_and_can_be_changed_for_loggers_that_exist(lines):
    early = log.get_logger()
    log.set_level("warn")
    bound = early.bind(proxy="p")
    for logger in (early, bound):
        logger.info("dropped")
        logger.warning("kept")
    assert len(lines()) == 2
    log.set_level("info")
    bound.info("kept")
    assert len(lines()) == 3


def test_unknown_level_is_refused_with_frps_words():
    with pytest.raises(ConfigError, match=r"optional values are \[trace debug info warn error\]"):
        log.configure("loud")


def test_logging_works_before_it_is_configured(capfd, monkeypatch):
    monkeypatch.setattr(log, "_output", log._Output())
    log.Logger(log._output, log._PROCESSORS, {}).info("early")
    assert capfd.readouterr().out.endswith("] early\n")


def test_structlogs_own_get_logger_writes_to_the_same_place(lines):
    structlog.get_logger().info("from a library", key=1)
    assert lines()[0].endswith(" from a library key=1")


def test_warnings_of_the_standard_library_arrive(lines):
    logging.getLogger("asyncio").warning("slow %s", "callback")
    logging.getLogger("asyncio").info("chatter")
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("asyncio").exception("never retrieved")
    assert lines()[0].endswith(" slow callback logger=asyncio")
    assert "[E]" in lines()[1]
    assert lines()[-1] == "    ValueError: inner"


def test_lost_exception_of_a_task_is_logged(lines):
    async def fail() -> None:
        raise ValueError("lost")

    async def main() -> None:
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        del task
        gc.collect()

    asyncio.run(main())
    assert lines()[-1] == "    ValueError: lost"


def test_call_below_the_level_costs_next_to_nothing():
    log.configure("info")
    logger = log.get_logger().bind(run_id="r", proxy="p")
    each = min(timeit.repeat(lambda: logger.debug("no", a=1), number=2000, repeat=20)) / 2000
    assert each < 3e-6  # 0.2 us on an idle machine; the bound only tells a mistake in kind


# --- JSON --------------------------------------------------------------------------------------


def test_json_has_one_object_per_line(tmp_path, clock, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Seoul")
    time.tzset()
    path = tmp_path / "log"
    log.configure("info", str(path), fmt="json", clock=clock)
    logger = log.get_logger().bind(run_id="r", proxy="p")
    logger.info("started\n", port=1, ok=True, names=["a"], more={"k": {1}}, who=ValueError("x"))
    logger.error("한\udcff" * 5000)
    first, second = map(json.loads, path.read_text().splitlines())
    line = first.pop("caller")
    assert line.startswith("unit/test_log.py:")
    assert first == {
        "time": "2026-11-22T21:00:00.000+09:00",
        "level": "info",
        "run_id": "r",
        "proxy": "p",
        "event": "started\n",
        "port": 1,
        "ok": True,
        "names": ["a"],
        "more": {"k": [1]},
        "who": "x",
    }
    assert list(first)[:5] == ["time", "level", "run_id", "proxy", "event"]
    assert second["level"] == "error"
    assert path.read_bytes().isascii()


def test_keys_of_an_event_cannot_replace_those_of_the_line(tmp_path, clock):
    path = tmp_path / "log"
    log.configure("info", str(path), fmt="json", clock=clock)
    log.get_logger().info("e", time="never", level="loud")
    assert json.loads(path.read_text())["level"] == "info"


# --- the console -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "code"),
    [("debug", "1;36"), ("info", "1;34"), ("warning", "1;33"), ("error", "1;31"), ("trace", None)],
)
def test_console_is_coloured_as_frp_does(capfd, level, code):
    log.configure("trace")
    getattr(log.get_logger(), level)("text")
    out = capfd.readouterr().out
    if code is None:
        assert "\x1b" not in out
    else:
        assert out.startswith(f"\x1b[{code}m2")
        assert out.endswith("] text\n\x1b[0m")


def test_colour_can_be_turned_off_and_json_has_none(capfd):
    log.configure(disable_color=True)
    log.get_logger().info("plain")
    log.configure(fmt="json")
    log.get_logger().info("json")
    assert "\x1b" not in capfd.readouterr().out


def test_what_was_printed_before_comes_before(capfd):
    print("first")
    log.configure(disable_color=True)
    log.get_logger().info("second")
    assert capfd.readouterr().out.startswith("first\n2")


def test_console_without_a_descriptor_is_written_through_its_stream(capsys):
    log.configure(disable_color=True)
    log.get_logger().info("text")
    assert capsys.readouterr().out.endswith("] text\n")


def test_console_that_is_closed_or_missing_is_no_error(monkeypatch):
    for stream in (None, open(os.devnull, "w")):  # noqa: SIM115  # closed on purpose
        if stream is not None:
            stream.close()
        monkeypatch.setattr(sys, "stdout", stream)
        log.configure()
        log.get_logger().info("nobody hears")


class Pipe:
    """A console that is a pipe; nobody reads it until `read` is called."""

    def __init__(self, monkeypatch) -> None:
        self.source, self.sink = os.pipe()
        self.file = os.fdopen(self.sink, "w")
        monkeypatch.setattr(sys, "stdout", self.file)
        log.configure(disable_color=True)

    def read(self) -> str:
        os.set_blocking(self.source, False)
        data = b""
        while True:
            try:
                more = os.read(self.source, 65536)
            except BlockingIOError:
                return data.decode()
            data += more

    def close(self) -> None:
        os.close(self.source)
        self.file.close()


def test_console_that_nobody_reads_never_stops_the_program(monkeypatch):
    pipe = Pipe(monkeypatch)
    logger = log.get_logger()
    started = time.monotonic()
    for number in range(3000):
        logger.info("x" * 100, number=number)
    assert time.monotonic() - started < 10
    before = pipe.read()
    logger.info("after")
    after = pipe.read()
    pipe.close()
    text = (before + after).splitlines()
    assert text[-1].endswith("] after")
    lost = int(re.search(r"\] (\d+) log lines were lost: nobody read them$", text[-2])[1])
    assert all(re.fullmatch(r"2.*x number=\d+", line) for line in text[:-2])
    assert len(text) - 2 + lost == 3000


def test_console_whose_reader_is_gone_is_no_error(monkeypatch):
    pipe = Pipe(monkeypatch)
    os.close(pipe.source)
    pipe.source = os.open(os.devnull, os.O_RDONLY)
    for _ in range(3):
        log.get_logger().info("nobody hears")
    pipe.close()


def test_console_that_is_not_blocking_is_no_error(monkeypatch):
    pipe = Pipe(monkeypatch)
    os.set_blocking(pipe.sink, False)
    for _ in range(2000):
        log.get_logger().info("x" * 200)
    assert pipe.read().startswith("2")
    log.get_logger().info("after")
    assert "log lines were lost" in pipe.read()
    pipe.close()


# --- the file ----------------------------------------------------------------------------------


def test_file_and_its_directories_are_made_with_tight_modes(tmp_path):
    path = tmp_path / "a" / "b" / "frps.log"
    log.configure(to=str(path))
    log.get_logger().info("text")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "\x1b" not in path.read_text()


def test_file_that_exists_is_appended_to(tmp_path):
    path = tmp_path / "frps.log"
    path.write_text("old\n")
    log.configure(to=str(path))
    log.get_logger().info("new")
    assert len(path.read_text().splitlines()) == 2
    assert names(tmp_path) == ["frps.log"]


def test_file_that_cannot_be_opened_is_a_config_error_and_changes_nothing(tmp_path, lines):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"cannot write the log file .*: File exists; give a file"
    ):
        log.configure(to=str(tmp_path / "file" / "frps.log"))
    with pytest.raises(ConfigError, match="Is a directory"):
        log.configure(to=str(tmp_path))
    log.get_logger().info("still here")
    assert len(lines()) == 1


def test_file_is_renamed_at_local_midnight(tmp_path, clock, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Seoul")  # midnight is 15:00 UTC
    time.tzset()
    log.configure(to=str(tmp_path / "frps.log"), clock=clock)
    logger = log.get_logger()
    clock.now = NOON + 3 * 3600 - 0.001
    logger.info("before")
    clock.now = NOON + 3 * 3600
    logger.info("after")
    assert names(tmp_path) == ["frps.20261123-000000.log", "frps.log"]
    assert "before" in (tmp_path / "frps.20261123-000000.log").read_text()
    assert "after" in (tmp_path / "frps.log").read_text()
    assert stat.S_IMODE((tmp_path / "frps.log").stat().st_mode) == 0o600


def test_file_without_an_extension_is_renamed_too(tmp_path, clock):
    log.configure(to=str(tmp_path / "frps"), clock=clock)
    clock.now += DAY
    log.get_logger().info("after")
    assert names(tmp_path) == ["frps", "frps.20261123-000000"]


def test_several_days_without_a_line_make_one_rename_at_the_last_midnight(tmp_path, clock):
    log.configure(to=str(tmp_path / "frps.log"), clock=clock)
    clock.now += 5 * DAY
    log.get_logger().info("after")
    clock.now += 3600
    log.get_logger().info("same day")
    assert names(tmp_path) == ["frps.20261127-000000.log", "frps.log"]


def test_rename_never_overwrites(tmp_path, clock):
    taken = tmp_path / "frps.20261123-000000.log"
    taken.write_text("precious")
    log.configure(to=str(tmp_path / "frps.log"), clock=clock)
    clock.now += DAY
    log.get_logger().info("after")
    assert taken.read_text() == "precious"
    assert "frps.20261123-000001.log" in names(tmp_path)


def test_old_files_are_deleted_by_the_time_in_their_name(tmp_path, clock):
    kept = [
        "frps.20261121-115959.log",  # two days and a second before
        "frps.20261121-120001.log",
        "frps.20200101-000000.txt",
        "frps.20200101.log",
        "frps.20209999-000000.log",
        "other.20200101-000000.log",
        "xfrps.20200101-000000.log",
    ]
    for name in [*kept, "frps.20261120-000000.log", "frps.20200101-000000.log"]:
        (tmp_path / name).write_text("")
    log.configure(to=str(tmp_path / "frps.log"), max_days=2, clock=clock)
    clock.now += DAY
    log.get_logger().info("after")
    assert names(tmp_path) == sorted([*kept[1:], "frps.20261123-000000.log", "frps.log"])


@pytest.mark.parametrize("max_days", [0, -1])
def test_without_a_limit_all_files_are_kept(tmp_path, clock, max_days):
    (tmp_path / "frps.20000101-000000.log").write_text("")
    log.configure(to=str(tmp_path / "frps.log"), max_days=max_days, clock=clock)
    clock.now += DAY
    log.get_logger().info("after")
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize(
    ("zone", "now", "hours"),
    [
        ("Europe/Berlin", 1774738800.0, 23),  # 2026-03-29 00:00, the clocks go forward
        ("Europe/Berlin", 1792879200.0, 25),  # 2026-10-25 00:00, the clocks go back
        ("Asia/Seoul", NOON + 3 * 3600, 24),
        ("UTC", NOON, 12),
    ],
)
def test_next_midnight_heeds_summer_time(monkeypatch, zone, now, hours):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    assert sinks.next_midnight(now) == now + hours * 3600


@given(st.floats(0, 4e9))
def test_next_midnight_is_later_and_at_most_26_hours_away(now):
    assert now < sinks.next_midnight(now) <= now + 26 * 3600


def test_file_moved_away_is_opened_again_within_a_second_of_logging(tmp_path, clock, lines):
    logger = log.get_logger()
    logger.info("one")
    (tmp_path / "frps.log").rename(tmp_path / "moved")
    logger.info("two")
    clock.now += 1.5
    logger.info("three")
    assert len((tmp_path / "moved").read_text().splitlines()) == 2
    assert len(lines()) == 1


def test_reopen_opens_a_moved_file_at_once(tmp_path, lines):
    log.get_logger().info("one")
    (tmp_path / "frps.log").rename(tmp_path / "moved")
    log.reopen()
    log.get_logger().info("two")
    assert len(lines()) == 1


def test_reopen_on_the_console_does_nothing(capfd):
    log.configure(disable_color=True)
    log.reopen()
    log.get_logger().info("text")
    assert capfd.readouterr().out.endswith("] text\n")


def test_directory_that_vanished_is_made_again(tmp_path, clock):
    path = tmp_path / "logs" / "frps.log"
    log.configure(to=str(path), clock=clock)
    path.unlink()
    path.parent.rmdir()
    clock.now += 2
    log.get_logger().info("text")
    assert len(path.read_text().splitlines()) == 1


def test_file_that_cannot_be_opened_again_costs_lines_and_says_so_later(tmp_path, clock):
    folder = tmp_path / "logs"
    log.configure(to=str(folder / "frps.log"), clock=clock)
    logger = log.get_logger()
    (folder / "frps.log").unlink()
    folder.rmdir()
    folder.write_text("in the way")
    clock.now += DAY  # rotation closes the file first, so nothing is open now
    for _ in range(3):
        logger.info("lost")
    folder.unlink()
    clock.now += 2
    logger.info("back")
    first, second = (folder / "frps.log").read_text().splitlines()
    assert "[W]" in first
    assert re.search(r"3 log lines were lost: (File exists|Not a directory)", first)
    assert second.endswith("] back")


def test_rename_that_fails_keeps_the_old_file(tmp_path, clock, monkeypatch):
    log.configure(to=str(tmp_path / "frps.log"), clock=clock)
    log.get_logger().info("before")

    def refuse(*_):
        raise PermissionError(1, "no")

    monkeypatch.setattr(os, "rename", refuse)
    clock.now += DAY
    log.get_logger().info("after")
    assert names(tmp_path) == ["frps.log"]
    assert len((tmp_path / "frps.log").read_text().splitlines()) == 2


@pytest.fixture
def small_files():
    """Limit the size of files, as a full disk does: a short write, then an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(
        resource.RLIMIT_FSIZE, (soft if size is None else size, hard)
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_costs_lines_tears_none_and_is_told_once(tmp_path, clock, small_files):
    path = tmp_path / "frps.log"
    log.configure(to=str(path), clock=clock)
    logger = log.get_logger()
    small_files(1000)
    for number in range(50):
        logger.info("line", number=number)
    assert path.stat().st_size == 1000
    small_files(None)
    logger.info("too soon")  # a second passes before the disk is tried again
    clock.now += 1.5
    logger.info("back")
    logger.info("on")
    text = path.read_text().splitlines()
    assert text[-1].endswith("] on")
    assert text[-2].endswith("] back")
    lost = int(re.search(r"\[W\] .*\] (\d+) log lines were lost: File too large$", text[-3])[1])
    assert all(re.fullmatch(r"2026.* line number=\d+", line) for line in text[:-3])
    assert len(text) - 3 + lost == 51


def test_lost_lines_are_told_in_json_too(tmp_path, clock, small_files):
    path = tmp_path / "frps.log"
    log.configure(to=str(path), fmt="json", clock=clock)
    small_files(10)
    for _ in range(5):
        log.get_logger().info("line")
    small_files(None)
    clock.now += 2
    log.get_logger().info("back")
    assert [json.loads(line)["level"] for line in path.read_text().splitlines()] == [
        "info",
        "warn",
        "info",
    ]


def test_device_as_log_file_is_never_renamed(clock):
    log.configure(to=os.devnull, clock=clock)
    clock.now += DAY
    log.get_logger().info("text")
    assert not stat.S_ISREG(os.stat(os.devnull).st_mode)


def test_clock_turned_back_does_not_stop_the_log(tmp_path, clock, lines):
    log.get_logger().info("one")
    clock.now -= 10 * DAY
    (tmp_path / "frps.log").rename(tmp_path / "moved")
    log.get_logger().info("two")
    assert len(lines()) == 1


def test_file_is_renamed_at_midnight_after_the_clock_was_turned_back(tmp_path, clock):
    clock.now += 1000 * DAY  # A machine whose clock is far ahead until it finds a time server.
    log.configure(to=str(tmp_path / "frps.log"), clock=clock)
    log.get_logger().info("one")
    clock.now = NOON
    log.get_logger().info("two")
    assert names(tmp_path) == ["frps.log"]
    clock.now += DAY
    log.get_logger().info("three")
    assert names(tmp_path) == ["frps.20261123-000000.log", "frps.log"]


def test_threads_do_not_mix_their_lines(lines):
    def work(name: str) -> None:
        for _ in range(100):
            log.get_logger().info(name * 50)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines()) == 400
    assert all(re.search(r"\] (a+|b+|c+|d+)$", line) for line in lines())


def test_finalizer_that_logs_in_the_middle_of_a_line_does_not_hang(lines):
    class Dying:
        def __str__(self) -> str:
            log.get_logger().info("inner")
            return "outer"

    log.get_logger().info("event", key=Dying())
    assert len(lines()) == 2


def test_configuring_again_closes_the_old_file(tmp_path):
    if not os.path.isdir("/proc/self/fd"):
        pytest.fail("this test counts descriptors in /proc")
    log.configure(to=str(tmp_path / "a"))
    before = len(os.listdir("/proc/self/fd"))
    for name in "bcd":
        log.configure(to=str(tmp_path / name))
    assert len(os.listdir("/proc/self/fd")) == before
