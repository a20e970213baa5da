"""The pool survives workers that die or hang, and says what they were busy with."""

import os
import signal
import time

from hpdm_core.data.pool import NO_MARK, WorkerLost, WorkerPool, run_tasks


def work(task: int, mark) -> int:
    """Square the task; some tasks are fatal."""
    mark(task)
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 5:
        raise ValueError("five")
    if task == 7:
        mark(NO_MARK)
        time.sleep(600)
    if task > 100:  # slow, but busy
        for place in range(8):
            mark(place)
            time.sleep(1.0)
    return task * task


def run(tasks, *, workers=2, timeout=300.0):
    with WorkerPool(work, workers=workers, timeout=timeout) as pool:
        return dict(run_tasks(pool, tasks, ahead=2 * workers))


def test_results_come_back_with_their_tasks():
    assert run([0, 1, 2, 4, 6]) == {0: 0, 1: 1, 2: 4, 4: 16, 6: 36}


def test_a_dead_worker_costs_its_task_alone():
    results = run([1, 3, 2, 5, 4], workers=1)
    lost = results.pop(3)
    assert isinstance(lost, WorkerLost)
    assert lost.mark == 3
    assert "code -9" in str(lost)
    assert isinstance(results.pop(5), ValueError)
    assert results == {1: 1, 2: 4, 4: 16}


def test_a_hung_worker_is_ended():
    results = run([1, 7, 2], workers=1, timeout=8.0)
    lost = results.pop(7)
    assert isinstance(lost, WorkerLost)
    assert lost.mark == NO_MARK
    assert "no answer after 8 s" in str(lost)
    assert results == {1: 1, 2: 4}


def test_a_slow_worker_that_marks_its_progress_is_waited_for():
    with WorkerPool(work, workers=1, timeout=5.0) as pool:
        pool.submit(101)
        assert pool.collect(within=0.1) == []
        assert pool.collect() == [(101, 101 * 101)]


def test_closing_ends_workers_in_the_middle_of_a_task():
    pool = WorkerPool(work, workers=1, timeout=300.0)
    pool.submit(7)
    (process,) = [worker.process for worker in pool._workers]
    pool.close()
    assert not process.is_alive()
    assert pool.pending == 0


def test_ctrl_c_is_the_parents_business():
    with WorkerPool(work, workers=1, timeout=300.0) as pool:
        pool.submit(1)
        assert pool.collect() == [(1, 1)]
        os.kill(pool._workers[0].process.pid, signal.SIGINT)
        pool.submit(2)
        assert pool.collect() == [(2, 4)]
