"""Schedules on a server that has neither update nor lock nor unique names: one is right in the end."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import schedule_commands, schedule_file, scheduling
from pipelines.schedule_file import Schedule
from pipelines.server import Server
from tests.pipelines.conftest import QUICK, Ask, command, known
from tests.pipelines.kfp_server import Fault, KfpServer, serving
from trainer.errors import ServerError, UsageError

NAME = "nightly"
API = "/apis/v2beta1"
CHANGES = ("POST /apis/v2beta1", "DELETE /apis/v2beta1")
# One try, so that a test says how often a server is asked.
ONCE = dataclasses.replace(QUICK, attempts=1)


def write(directory: Path, **changes: object) -> str:
    fields = {"name": NAME, "pipeline": "training", "parameters": {"dataset": "digits"}, "cron": "0 3 * * *"}
    path = directory / f"{len(list(directory.iterdir()))}.yaml"
    path.write_text(json.dumps({name: value for name, value in {**fields, **changes}.items() if value is not None}))
    return str(path)


@pytest.fixture
def schedule(tmp_path: Path) -> Callable[..., Schedule]:
    """The schedule of a file with fields changed."""
    return lambda **changes: schedule_file.read(write(tmp_path, **changes))


@pytest.fixture
def old(schedule) -> Schedule:
    return schedule()


@pytest.fixture
def new(schedule) -> Schedule:
    return schedule(cron=None, interval="6h", parameters={"dataset": "digits", "workers": 2})


def is_right(kfp: KfpServer, wanted: Schedule) -> bool:
    """Whether exactly one is enabled, and says what the file says."""
    return len(kfp.enabled(NAME)) == 1 and not scheduling.plan(Server(kfp.host, QUICK), wanted).changes()


def test_a_plan_changes_nothing(kfp: KfpServer, server: Server, old: Schedule) -> None:
    changes = scheduling.plan(server, old).changes()
    assert changes["cron"] == (None, "0 0 3 * * *")
    assert changes["version"] == (None, old.package.version)
    assert not any(kfp.count(change) for change in CHANGES)


def test_what_is_applied_is_what_the_server_runs(kfp: KfpServer, server: Server, old: Schedule) -> None:
    applied = scheduling.apply(server, old)
    [run] = kfp.recurring_runs.values()
    assert run["mode"] == "ENABLE"
    assert run["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert run["runtime_config"] == {"parameters": {"dataset": "digits"}}
    assert (run["no_catchup"], run["max_concurrency"]) == (True, "1")
    [version] = kfp.versions.values()
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert applied.link == f"{kfp.host}/#/recurringrun/details/{run['recurring_run_id']}"
    assert [one["display_name"] for one in kfp.experiments.values()] == [NAME]


def test_a_second_apply_changes_nothing(kfp: KfpServer, server: Server, old: Schedule) -> None:
    first = scheduling.apply(server, old)
    kfp.requests.clear()
    assert scheduling.apply(server, old) == first
    assert not any(kfp.count(change) for change in CHANGES)


@pytest.mark.parametrize(
    "change",
    [
        {"cron": "0 4 * * *"},
        {"cron": None, "interval": "1d"},
        {"parameters": {"dataset": "digits", "overrides": ["train_epochs=3"]}},
        {"concurrency": 2},
        {"catchup": True},
        {"experiment": "other"},
        {"version": "latest"},
        {"pipeline": "prepare_data"},
    ],
)
def test_each_change_is_a_new_one_in_the_place_of_the_old(
    kfp: KfpServer, server: Server, old: Schedule, schedule, change: dict[str, object]
) -> None:
    scheduling.apply(server, old)
    changed = schedule(**change)
    assert set(scheduling.plan(server, changed).changes()) <= {*change, "interval", "cron", "version"}
    applied = scheduling.apply(server, changed)
    assert applied.removed == 1
    [run] = kfp.named(NAME)
    assert run["mode"] == "ENABLE"
    assert scheduling.plan(server, changed).changes() == {}


def test_the_latest_version_is_the_servers_to_choose(kfp: KfpServer, server: Server, schedule) -> None:
    scheduling.apply(server, schedule(version="latest"))
    [run] = kfp.named(NAME)
    assert list(run["pipeline_version_reference"]) == ["pipeline_id"]
    assert len(kfp.versions) == 1


def test_a_schedule_is_switched_without_a_new_one(kfp: KfpServer, server: Server, old: Schedule, schedule) -> None:
    first = scheduling.apply(server, old)
    off = schedule(enabled=False)
    assert scheduling.plan(server, off).changes() == {"enabled": (True, False)}
    assert scheduling.apply(server, off) == first
    assert kfp.enabled(NAME) == []
    scheduling.apply(server, old)
    scheduling.pause(server, NAME)
    assert kfp.enabled(NAME) == []
    scheduling.resume(server, NAME)
    assert is_right(kfp, old)


def test_going_back_is_a_change_like_another(kfp: KfpServer, server: Server, old: Schedule, new: Schedule) -> None:
    for wanted in (old, new, old, new):
        scheduling.apply(server, wanted)
        assert is_right(kfp, wanted)
        assert len(kfp.named(NAME)) == 1


def test_a_running_run_is_left_alone(kfp: KfpServer, server: Server, old: Schedule, new: Schedule) -> None:
    kfp.knows_orphans = False
    first = scheduling.apply(server, old)
    run = kfp.fire(first.recurring_run_id)
    assert scheduling.apply(server, new).left == 1
    assert is_right(kfp, new)
    assert {one["mode"] for one in kfp.named(NAME)} == {"ENABLE", "DISABLE"}
    assert scheduling.apply(server, new).left == 1
    assert scheduling.delete(server, NAME) == (1, 1)
    assert (kfp.enabled(NAME), kfp.killed, len(kfp.named(NAME))) == ([], [], 1)
    # What was left is an older one; the schedule is another, paused and resumed for itself.
    scheduling.apply(server, new)
    scheduling.pause(server, NAME)
    scheduling.resume(server, NAME)
    assert is_right(kfp, new)
    kfp.runs[run]["state"] = "SUCCEEDED"
    assert scheduling.apply(server, new).removed == 1
    assert (len(kfp.named(NAME)), kfp.killed) == (1, [])


def test_a_run_that_begins_while_we_look_is_left_alone(
    kfp: KfpServer, server: Server, old: Schedule, new: Schedule
) -> None:
    first = scheduling.apply(server, old)

    def begin(number: int, request: str) -> None:
        if request.startswith("DELETE"):
            kfp.runs["late"] = {"run_id": "late", "recurring_run_id": first.recurring_run_id, "state": "RUNNING"}

    kfp.before = begin
    scheduling.apply(server, new)
    assert "late" in kfp.runs
    assert kfp.killed == []


def test_among_many_users_there_is_a_namespace(kfp: KfpServer, ask: Ask, tmp_path: Path) -> None:
    kfp.multi_user = True
    context = tmp_path / ".config/kfp/context.json"
    context.parent.mkdir(parents=True)
    context.write_text(json.dumps({"namespace": "team"}))
    file = write(tmp_path)
    for words in (["apply", file], ["apply", file], ["list"]):
        ran = ask("schedule", *words, HOME=str(tmp_path))
        assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "nightly  enabled  0 0 3 * * *\n"
    assert {one["namespace"] for one in [*kfp.pipelines.values(), *kfp.experiments.values()]} == {"team"}


def test_others_of_other_names_are_left_alone(kfp: KfpServer, server: Server, schedule, old: Schedule) -> None:
    scheduling.apply(server, schedule(name="nightly-2"))
    scheduling.apply(server, old)
    scheduling.apply(server, schedule(cron="0 4 * * *"))
    assert len(kfp.named("nightly-2")) == len(kfp.enabled("nightly-2")) == 1


def test_an_end_that_no_file_has_is_a_difference(kfp: KfpServer, server: Server, old: Schedule) -> None:
    scheduling.apply(server, old)
    [run] = kfp.named(NAME)
    run["trigger"]["cron_schedule"]["end_time"] = "2026-01-01T00:00:00Z"
    assert scheduling.plan(server, old).changes() == {"end": ("2026-01-01T00:00:00+00:00", None)}
    scheduling.apply(server, old)
    assert is_right(kfp, old)


def test_one_that_the_server_cannot_read_is_listed(kfp: KfpServer, server: Server, old: Schedule) -> None:
    scheduling.apply(server, old)
    broken = {"recurring_run_id": "7", "created_at": "2026-01-01T00:00:00Z", "error": {"message": "not parsed"}}
    kfp.recurring_runs["7"] = broken
    listed, text = schedule_commands.list_all(server)
    assert [one["name"] for one in listed] == ["7", NAME]
    assert text.splitlines()[1] == "nightly  enabled  0 0 3 * * *"


def test_what_somebody_made_by_hand_is_replaced(kfp: KfpServer, server: Server, old: Schedule, new: Schedule) -> None:
    for wanted in (old, new):
        scheduling.apply(server, wanted)
    copies = [{**one, "recurring_run_id": str(n), "description": "mine"} for n in "az" for one in kfp.named(NAME)]
    kfp.recurring_runs |= {one["recurring_run_id"]: one for one in copies}
    scheduling.apply(server, new)
    assert is_right(kfp, new)
    assert len(kfp.named(NAME)) == 1


@pytest.mark.parametrize("reset", ["before", "after"])
def test_a_connection_that_broke_leaves_one(
    kfp: KfpServer, server: Server, old: Schedule, new: Schedule, reset: str
) -> None:
    scheduling.apply(server, old)
    for what in ("$", "/.*:disable", "/.*:enable"):
        kfp.faults += [Fault(f"POST {API}/recurringruns{what}", reset=reset)]
    kfp.faults += [Fault(f"DELETE {API}/recurringruns", reset=reset)]
    scheduling.apply(server, new)
    assert [fault.times for fault in kfp.faults] == [0, 0, 0, 0]
    assert is_right(kfp, new)
    assert len(kfp.named(NAME)) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500, 503])
@pytest.mark.parametrize(
    "where", ["GET .*/recurringruns", "POST .*runs$", "POST .*:disable", "POST .*:enable", "DELETE"]
)
def test_a_bad_day_ends_an_apply_and_the_next_mends_it(
    kfp: KfpServer, server: Server, old: Schedule, new: Schedule, where: str, status: int
) -> None:
    scheduling.apply(server, old)
    kfp.faults = [Fault(where, status=status, times=999)]
    if (where, status) == ("DELETE", 404):
        scheduling.apply(server, new)  # gone is gone
    else:
        with pytest.raises(ServerError):
            scheduling.apply(server, new)
    assert len(kfp.enabled(NAME)) <= 1
    kfp.faults = []
    scheduling.apply(server, new)
    assert is_right(kfp, new)
    assert len(kfp.named(NAME)) == 1


def dying(kfp: KfpServer, number: int, when: str, wanted: Schedule) -> bool:
    """Applies on a line that is cut for good at a request of this number; whether it came to that."""
    cut = Fault(".*", times=0, reset="before")
    kfp.faults, kfp.requests = [cut], []

    def at(reached: int, request: str) -> None:
        if reached == number:
            cut.reset, cut.times = when, 10**9
        elif reached > number:
            cut.reset = "before"

    kfp.before = at
    with contextlib.suppress(ServerError):
        scheduling.apply(Server(kfp.host, ONCE), wanted)
    kfp.faults, kfp.before = [], lambda number, request: None
    return len(kfp.requests) > number


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("is_running", [False, True])
@pytest.mark.parametrize("back", [False, True])
def test_what_one_that_died_has_left_is_mended(
    kfp: KfpServer, server: Server, old: Schedule, new: Schedule, when: str, is_running: bool, back: bool
) -> None:
    kfp.knows_orphans = False
    for number in range(1000):
        kfp.recurring_runs.clear()
        first = scheduling.apply(server, old)
        if is_running:
            kfp.fire(first.recurring_run_id)
        died = dying(kfp, number, when, new)
        assert len(kfp.enabled(NAME)) <= 1
        wanted = old if back else new
        scheduling.apply(server, wanted)
        assert is_right(kfp, wanted)
        assert len(kfp.named(NAME)) <= (2 if is_running else 1)
        assert kfp.killed == []
        if not died:
            assert number > 15
            return


def together(kfp: KfpServer, schedules: list[Schedule]) -> list[str]:
    """Applies all at once; what each ended with."""
    servers = [Server(kfp.host, QUICK) for _ in schedules]
    ended = [""] * len(schedules)
    begin = threading.Barrier(len(schedules))

    def apply(place: int) -> None:
        begin.wait()
        try:
            scheduling.apply(servers[place], schedules[place])
        except ServerError as error:
            ended[place] = str(error)

    threads = [threading.Thread(target=apply, args=[place]) for place in range(len(schedules))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


@pytest.mark.parametrize("seed", range(12))
def test_of_four_at_once_at_most_one_stands(kfp: KfpServer, old: Schedule, new: Schedule, seed: int) -> None:
    kfp.knows_orphans = False
    draw = random.Random(seed)
    slowness = draw.choice([0.0, 0.002, 0.01])
    kfp.before = lambda number, request: time.sleep(draw.random() * slowness)
    if seed % 2:
        scheduling.apply(Server(kfp.host, QUICK), old)
    ended = together(kfp, [old, new, old, new])
    assert all("another apply came at the same time" in one or "others change it" in one for one in ended if one)
    enabled = kfp.enabled(NAME)
    assert len(enabled) <= 1
    if "" in ended:
        # Who was told that all is well has its schedule there, or somebody's after it.
        assert len(enabled) == 1
    scheduling.apply(Server(kfp.host, QUICK), new)
    assert is_right(kfp, new)
    assert len(kfp.named(NAME)) == 1


def interleaved(kfp: KfpServer, first: Schedule, number: int, second: Schedule, other: int) -> tuple[list[str], bool]:
    """Applies one up to a request, then another up to one of its own; then the one to its end, and the other.

    What each ended with, and whether both came that far.
    """
    servers = [Server(kfp.host, QUICK) for _ in range(2)]
    ended, reached = ["", ""], [0, 0]
    stopped, released = threading.Event(), threading.Event()

    def apply(place: int) -> None:
        try:
            scheduling.apply(servers[place], [first, second][place])
        except ServerError as error:
            ended[place] = str(error)
        if place:
            stopped.set()

    inner = threading.Thread(target=apply, args=[1])

    def before(_: int, request: str) -> None:
        if not inner.ident:  # the first's requests
            reached[0] += 1
            if reached[0] == number:
                inner.start()
                stopped.wait()
        elif not stopped.is_set():  # the second's, while the first waits
            reached[1] += 1
            if reached[1] == other:
                stopped.set()
                released.wait()

    kfp.before = before
    apply(0)
    released.set()
    if inner.ident:
        inner.join()
    kfp.before = lambda number, request: None
    return ended, reached == [number, other]


def check_interleaved(kfp: KfpServer, old: Schedule, new: Schedule, number: int, other: int) -> bool:
    """Whether both came that far; what they leave is right."""
    kfp.recurring_runs.clear()
    ended, both = interleaved(kfp, old, number, new, other)
    assert len(kfp.enabled(NAME)) <= 1, (number, other)
    if "" in ended:
        assert len(kfp.enabled(NAME)) == 1, (number, other)
    scheduling.apply(Server(kfp.host, QUICK), new)
    assert is_right(kfp, new)
    assert len(kfp.named(NAME)) == 1
    return both


def test_of_two_that_meet_at_most_one_stands(kfp: KfpServer, old: Schedule, new: Schedule) -> None:
    # The first has elected its own and not looked at the others yet, or not enabled it; the second is anywhere.
    met = [check_interleaved(kfp, old, new, number, other) for number in (13, 15) for other in range(13, 30)]
    assert sum(met) > 20


@pytest.mark.long
def test_of_two_that_meet_anywhere_at_most_one_stands(kfp: KfpServer, old: Schedule, new: Schedule) -> None:
    for number in range(1, 1000):
        others = 0
        for other in range(1, 1000):
            if not check_interleaved(kfp, old, new, number, other):
                break
            others = other
        if not others:
            assert number > 15
            return


@pytest.mark.parametrize("seed", range(6))
def test_the_same_file_at_once_is_one_schedule(kfp: KfpServer, old: Schedule, seed: int) -> None:
    draw = random.Random(seed)
    kfp.before = lambda number, request: time.sleep(draw.random() * 0.005)
    assert together(kfp, [old] * 4) == [""] * 4
    assert is_right(kfp, old)


def test_one_that_is_not_there_is_named_with_those_that_are(server: Server, old: Schedule) -> None:
    with pytest.raises(UsageError, match="no schedule 'nightly'; there are none"):
        scheduling.pause(server, NAME)
    scheduling.apply(server, old)
    for act in (scheduling.pause, scheduling.resume, scheduling.delete, scheduling.known):
        with pytest.raises(UsageError, match="no schedule 'nope'; there are nightly"):
            act(server, "nope")


def test_the_commands_say_what_they_do(kfp: KfpServer, here: Ask, tmp_path: Path) -> None:
    file = write(tmp_path)
    planned = here("schedule", "plan", file)
    assert planned.stdout.splitlines()[0] == "nightly: new; times are in UTC"
    assert "  cron         0 0 3 * * *" in planned.stdout.splitlines()
    applied = here("schedule", "apply", file)
    [run] = kfp.named(NAME)
    link = f"{kfp.host}/#/recurringrun/details/{run['recurring_run_id']}"
    assert applied.stdout.splitlines() == ["nightly: created; enabled; times are in UTC", link]
    assert here("schedule", "plan", file).stdout == "nightly: as the file says; times are in UTC\n"
    changed = write(tmp_path, cron="0 4 * * *", concurrency=2)
    said = here("schedule", "plan", changed)
    assert said.stdout.splitlines() == [
        "nightly: differs; times are in UTC",
        "  cron         0 0 3 * * * → 0 0 4 * * *",
        "  concurrency  1 → 2",
    ]
    assert json.loads(here("schedule", "plan", changed, "--json").stdout)["changes"] == {
        "concurrency": {"now": 1, "file": 2},
        "cron": {"now": "0 0 3 * * *", "file": "0 0 4 * * *"},
    }
    kfp.fire(run["recurring_run_id"])
    applied = here("schedule", "apply", changed)
    assert applied.stdout.startswith("nightly: changed cron, concurrency; enabled; times are in UTC\n")
    assert applied.stderr == ("nightly: left 1, disabled: a run of theirs is in progress, which removing could end\n")
    assert here("schedule", "list").stdout == "nightly  enabled  0 0 4 * * *\n"
    shown = json.loads(here("schedule", "show", NAME, "--json").stdout)
    assert (shown["cron"], shown["enabled"], shown["older"]) == ("0 0 4 * * *", True, 1)
    assert here("schedule", "pause", NAME).stdout == "nightly: paused; runs in progress go on\n"
    assert here("schedule", "resume", NAME).stdout == "nightly: enabled; times are in UTC\n"
    deleted = here("schedule", "delete", NAME)
    assert deleted.stdout == "nightly: disabled; delete it again when its run has ended\n"
    assert here("schedule", "list", "--json").returncode == 0


@pytest.mark.long
def test_a_killed_apply_is_mended_by_the_next(tmp_path: Path) -> None:
    new_file = write(tmp_path, cron="0 4 * * *")
    old_schedule, new_schedule = schedule_file.read(write(tmp_path)), schedule_file.read(new_file)
    for when in ("before", "after"):
        for number in range(1000):
            with serving() as kfp:
                scheduling.apply(Server(kfp.host, QUICK), old_schedule)
                kfp.requests.clear()
                killed = kill_at(kfp, number, when, command("schedule", "apply", new_file))
                assert len(kfp.enabled(NAME)) <= 1
                scheduling.apply(Server(kfp.host, QUICK), new_schedule)
                assert is_right(kfp, new_schedule)
                assert len(kfp.named(NAME)) == 1
            if not killed:
                assert number > 15
                break


def kill_at(kfp: KfpServer, number: int, when: str, words: list[str]) -> bool:
    """Kills a command at one of its requests, before or after the server takes it; whether it came to that."""
    reached = threading.Event()

    def at(request_number: int, request: str) -> None:
        if request_number == number:
            os.kill(started.pid, signal.SIGKILL)
            started.wait()
            reached.set()

    setattr(kfp, when, at)
    started = subprocess.Popen(words, env=known(kfp), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    started.communicate(timeout=60)
    setattr(kfp, when, lambda number, request: None)
    # The server may still be at the last request.
    with kfp.lock:
        pass
    assert started.returncode == (-signal.SIGKILL if reached.is_set() else 0)
    return reached.is_set()


@pytest.mark.long
def test_four_programs_at_once_leave_at_most_one(tmp_path: Path) -> None:
    files = [write(tmp_path), write(tmp_path, cron="0 4 * * *")]
    for _ in range(3):
        with serving() as kfp:
            started = [
                subprocess.Popen(command("schedule", "apply", file), env=known(kfp), stdout=subprocess.DEVNULL)
                for file in files * 2
            ]
            assert {process.wait(120) for process in started} <= {0, 6}
            assert len(kfp.enabled(NAME)) <= 1
            scheduling.apply(Server(kfp.host, QUICK), schedule_file.read(files[0]))
            assert is_right(kfp, schedule_file.read(files[0]))
