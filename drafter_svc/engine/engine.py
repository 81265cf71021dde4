"""The engine thread: gathers the messages of all links, runs them as one batch, answers.

Everything that calls a torch operator happens here, since OpenMP keeps one team of threads for
each thread that calls it. Any thread may call the methods; answers are delivered on the engine's.
"""

import gc
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue

from torch import Tensor

from drafter_svc import metrics
from drafter_svc.engine.messages import Answers, BulkMessage, RoundMessage
from drafter_svc.engine.torch_threads import half_the_threads, limit_threads
from drafter_svc.engine.worker import Worker
from specserve import logs
from specwire.messages import AppendEntries, CatchUpAck, DraftCost, Proposals

# Rows of bulk messages that run between two batches of rounds, which wait for them.
BULK_PIECE = 128

Deliver = Callable[[Proposals | CatchUpAck], None]

_log = logs.get(__name__)


class Engine:
    """A thread that owns a worker."""

    def __init__(self, worker: Worker, on_failure: Callable[[], None], threads: int = 0) -> None:
        """Take what does the work, and what is called should the thread fail.

        Operators run on `threads` threads; 0 leaves the number to torch.
        """
        self._worker = worker
        self._threads = threads
        self._on_failure = on_failure
        self._mailbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._deliver: dict[int, Deliver] = {}
        self._rounds: list[RoundMessage] = []
        self._bulk: deque[BulkMessage] = deque()
        # Seconds that bulk rows took which no Ack has told of, by link.
        self._spent: defaultdict[int, float] = defaultdict(float)
        self._flushing: list[Callable[[], object]] = []
        self._running = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drafter", daemon=True)

    def start(self) -> None:
        """Start the thread, and return once it has warmed up."""
        self.call(self._warm_up)
        self._running = True
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Serve what has come, then end the thread, if it runs."""
        self.call(partial(setattr, self, "_running", False))
        if self._thread.is_alive():
            self._thread.join()

    def call(self, function: Callable[[], None]) -> None:
        """Run `function` on the engine's thread, after what came before it."""
        self._mailbox.put(function)

    def flush(self, done: Callable[[], object]) -> None:
        """Call `done`, on the engine's thread, once all that came before has been answered."""
        self.call(partial(self._flushing.append, done))

    def open_link(self, link: int, deliver: Deliver) -> None:
        """A verifier is there; its answers go to `deliver`, on the engine's thread."""
        self.call(partial(self._open, link, deliver))

    def close_link(self, link: int) -> None:
        """A verifier is gone; its sequences are freed. Closing twice is no error."""
        self.call(partial(self._close, link))

    def round(
        self,
        link: int,
        extends: Sequence[AppendEntries],
        features: Tensor | None,
        closes: Sequence[int],
    ) -> None:
        """Take a round; `features` are the rows of all extends in order."""
        message = RoundMessage(link, tuple(extends), features, tuple(closes), time.monotonic())
        self.call(partial(self._rounds.append, message))

    def bulk(self, link: int, extend: AppendEntries, features: Tensor) -> None:
        """Take rows beyond a round's worth; an Ack answers."""
        message = BulkMessage(link, extend, features, len(extend.tokens))
        self.call(partial(self._bulk.append, message))

    def _run(self) -> None:
        try:
            while self._gather():
                if self._rounds:
                    self._serve_rounds()
                if self._bulk:
                    self._serve_bulk()
                while self._flushing and not self._bulk:
                    self._flushing.pop()()
        except Exception:
            _log.exception("engine failed")
            self._on_failure()
            self._ready.set()

    def _gather(self) -> bool:
        """Take all that has come, waiting where there is nothing to do."""
        idle = self._running and not self._bulk
        try:
            self._mailbox.get(block=idle)()
            while True:
                self._mailbox.get_nowait()()
        except Empty:
            return self._running or bool(self._rounds or self._bulk)

    def _serve_rounds(self) -> None:
        rounds, self._rounds[:] = list(self._rounds), []
        began = time.monotonic()
        answers = self._worker.serve(rounds)
        took = time.monotonic() - began
        waits: list[float] = []
        for link, answer in answers.items():
            received = min(message.received for message in rounds if message.link == link)
            waits.append(began - received)
            self._answer(link, answer, DraftCost(_us(began - received), _us(took)))
        # Verifiers wait for the answers, and nobody for the metrics.
        metrics.COMPUTE_SECONDS.observe(took)
        for wait in waits:
            metrics.QUEUE_SECONDS.observe(wait)
        self._worker.count(answers.values())
        self._worker.report()

    def _serve_bulk(self) -> None:
        """Run one piece's worth of rows; the rest of them waits for the next turn."""
        pieces: list[BulkMessage] = []
        last: list[bool] = []
        room = BULK_PIECE
        while self._bulk and room:
            piece, rest = self._bulk.popleft().split(room)
            pieces.append(piece)
            last.append(rest is None)
            room -= len(piece.extend.tokens)
            if rest is not None:
                self._bulk.appendleft(rest)
        began = time.monotonic()
        with half_the_threads():
            acks = self._worker.fill(pieces)
        each = (time.monotonic() - began) / (BULK_PIECE - room)
        for piece, ack, whole in zip(pieces, acks, last, strict=True):
            if ack is None:
                continue
            self._spent[piece.link] += each * len(piece.extend.tokens)
            if whole:
                compute_us = _us(self._spent.pop(piece.link))
                self._deliver[piece.link](replace(ack, compute_us=compute_us))

    def _answer(self, link: int, answers: Answers, cost: DraftCost) -> None:
        self._deliver[link](Proposals(tuple(answers.drafts), tuple(answers.needs), cost))

    def _open(self, link: int, deliver: Deliver) -> None:
        self._deliver[link] = deliver
        self._worker.open_link(link)
        self._worker.report()

    def _close(self, link: int) -> None:
        self._deliver.pop(link, None)
        self._spent.pop(link, None)
        self._worker.close_link(link)
        self._worker.report()

    def _warm_up(self) -> None:
        if self._threads:
            limit_threads(self._threads)
        self._worker.warm_up()
        gc.collect()
        gc.freeze()
        self._ready.set()


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
