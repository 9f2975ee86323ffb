"""Who works when in an agent: turns in order, so many texts at once, so many that wait."""

import threading
import time
from collections.abc import Callable

import pytest
from agents import until

from fleetdraft.client.agent.admission import Admission
from fleetdraft.client.agent.learning import Permitted, Teaching
from fleetdraft.client.agent.refusal import Draining, Full, Gone
from fleetdraft.client.agent.turns import Turns


class Asker:
    """A request that can be given up: the in-memory twin of a gRPC context."""

    def __init__(self) -> None:
        self._active, self._callbacks = True, list[Callable[[], None]]()

    def is_active(self) -> bool:
        return self._active

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self._callbacks.append(callback)
        return self._active

    def cancel(self) -> None:
        self.leave()

    def leave(self) -> None:
        self._active = False
        for callback in self._callbacks:
            callback()


def test_turns_go_in_the_order_of_asking_and_late_ones_last() -> None:
    turns, order, threads = Turns(), list[str](), list[threading.Thread]()

    def work(name: str, late: bool) -> None:
        with turns.take(late):
            order.append(name)

    with turns.take():
        for number, (name, late) in enumerate([("late", True), ("a", False), ("b", False), ("later", True)], 1):
            threads.append(threading.Thread(target=work, args=(name, late)))
            threads[-1].start()
            until(lambda n=number: len(turns._first) + len(turns._late) == n)
    for thread in threads:
        thread.join(10)
    assert order == ["a", "b", "late", "later"]


def test_who_can_wait_has_the_eleventh_turn_at_the_latest() -> None:
    turns, order, threads = Turns(), list[str](), list[threading.Thread]()

    def work(name: str, late: bool) -> None:
        with turns.take(late):
            order.append(name)

    with turns.take():
        for number, name in enumerate(["late", *("text" for _ in range(12))], 1):
            threads.append(threading.Thread(target=work, args=(name, name == "late")))
            threads[-1].start()
            until(lambda n=number: len(turns._first) + len(turns._late) == n)
    for thread in threads:
        thread.join(10)
    assert order.index("late") == 10


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_than_the_workers_are_inside(workers: int) -> None:
    turns, inside, most, lock = Turns(workers), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with turns.take():
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most <= workers
    assert turns._free == workers


def test_who_waits_for_an_answer_lets_others_work() -> None:
    turns, worked = Turns(), threading.Event()
    with turns.take():
        other = threading.Thread(target=lambda: [turns._acquire(False), worked.set(), turns._release()])
        other.start()
        assert not worked.wait(0.05)
        with turns.let_go():
            assert worked.wait(10)
    other.join(10)


def test_one_text_more_than_may_wait_is_refused() -> None:
    admission, entered, leave = Admission(1, 1), list[str](), threading.Event()

    def write(name: str) -> None:
        with admission.admit(Asker()):
            entered.append(name)
            leave.wait(10)

    first, second = (threading.Thread(target=write, args=(name,)) for name in ("first", "second"))
    first.start()
    until(lambda: admission.active == 1)
    second.start()
    until(lambda: admission.waiting == 1)
    with pytest.raises(Full, match="1 texts are written and 1 wait"), admission.admit(Asker()):
        pass
    leave.set()
    first.join(10)
    second.join(10)
    assert entered == ["first", "second"]
    assert (admission.active, admission.waiting) == (0, 0)


def test_who_gives_up_waiting_leaves_its_place_to_others() -> None:
    admission, asker, ended = Admission(1, 1), Asker(), list[type[BaseException]]()

    def write() -> None:
        try:
            with admission.admit(asker):
                pass
        except Gone as error:
            ended.append(type(error))

    with admission.admit(Asker()):
        waiter = threading.Thread(target=write)
        waiter.start()
        until(lambda: admission.waiting == 1)
        asker.leave()
        waiter.join(10)
        assert admission.waiting == 0
    assert ended == [Gone]
    assert admission.active == 0


def test_a_draining_agent_refuses_who_waits_and_waits_for_who_writes() -> None:
    admission, refused, leave = Admission(1, 4), threading.Event(), threading.Event()

    def write() -> None:
        with admission.admit(Asker()):
            leave.wait(10)

    def wait() -> None:
        try:
            write()
        except Draining:
            refused.set()

    writer, waiter = threading.Thread(target=write), threading.Thread(target=wait)
    writer.start()
    until(lambda: admission.active == 1)
    waiter.start()
    until(lambda: admission.waiting == 1)
    assert not admission.drain(0.05)
    assert refused.wait(10)
    with pytest.raises(Draining), admission.admit(Asker()):
        pass
    leave.set()
    assert admission.drain(10)
    writer.join(10)
    waiter.join(10)


def test_any_number_of_texts_teach_and_who_has_to_be_alone_ends_them_and_lets_none_in() -> None:
    teaching, told, alone, leave = Teaching(), list[str](), threading.Event(), threading.Event()

    def change() -> None:
        with teaching.dismissed(10):
            alone.set()
            leave.wait(10)

    changer = threading.Thread(target=change)
    with teaching.joined(lambda: told.append("a")) as first, teaching.joined(lambda: told.append("b")) as second:
        assert (first, second) == (True, True)
        with pytest.raises(Full), teaching.dismissed(0.01):
            pass
        assert told == ["a", "b"]
        with teaching.joined(lambda: told.append("c")) as third:
            assert third
        changer.start()
        until(lambda: len(told) == 4)
        with teaching.joined(lambda: None) as late:
            assert not late
        assert not alone.is_set()
    assert alone.wait(10)
    with teaching.joined(lambda: None) as late:
        assert not late
    leave.set()
    changer.join(10)
    with teaching.joined(lambda: None) as again:
        assert again


class Steps:
    """Ten steps of work, and how many were done."""

    def __init__(self) -> None:
        self.done, self.closed = 0, False

    @property
    def due(self) -> bool:
        return self.done < 10

    def steps(self):
        try:
            while self.due:
                self.done += 1
                yield
        finally:
            self.closed = True


def test_a_learner_rests_where_it_may_not_train_and_goes_on_from_there() -> None:
    allowed, work = True, Steps()
    learner = Permitted(work, lambda: allowed)
    for _ in learner.steps():
        allowed = work.done < 4
    assert (work.done, work.closed, learner.due) == (4, True, False)
    allowed = True
    assert learner.due
    assert [None for _ in learner.steps()] == [None] * 6
