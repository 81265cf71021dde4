import threading

import torch

from drafter_svc.engine.engine import Engine
from drafter_svc.engine.torch_threads import half_the_threads
from tests.support.drafter_fixtures import Parts


def test_the_engine_limits_its_own_thread_only() -> None:
    before = torch.get_num_threads()
    counts: list[int] = []

    def count() -> None:
        torch.zeros(64, 64) @ torch.zeros(64, 64)
        counts.append(torch.get_num_threads())

    engine = Engine(Parts().worker, lambda: None, threads=before + 2)
    engine.start()
    engine.call(count)
    engine.stop()
    later = threading.Thread(target=count)
    later.start()
    later.join()
    assert counts == [before + 2, before]
    assert torch.get_num_threads() == before


def test_half_the_threads_for_as_long_as_it_takes() -> None:
    before = torch.get_num_threads()
    try:
        for count, half in ((8, 4), (3, 1), (1, 1)):
            torch.set_num_threads(count)
            with half_the_threads():
                assert torch.get_num_threads() == half
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
