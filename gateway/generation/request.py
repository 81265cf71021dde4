"""One request: its choices, the places they take, and what they cost."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from gateway.app_state import AppState
from gateway.backends.placement import Placement
from gateway.backends.served_model import ServedModel
from gateway.errors import ApiError
from gateway.generation.failover import ChoiceRunner
from gateway.generation.latency import LatencyRecorder
from gateway.generation.merge import merge
from gateway.generation.output import ChoiceOutput, OutputDelta
from gateway.generation.usage import GenerationUsage
from gateway.schema.common import GenerationBody
from gateway.text.detokenizer import Detokenizer
from gateway.text.stop_strings import StopFinder
from specserve import logs
from specwire.v1 import verifier_pb2

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of a prompt and how many may follow."""

    tokens: list[int]
    max_tokens: int


@dataclass
class GenerationRequest:
    """A request that has been checked and tokenized. Times are of `time.monotonic`."""

    services: AppState
    model: ServedModel
    body: GenerationBody
    prompts: Sequence[Prompt]
    top_logprobs: int | None
    request_id: str
    session_id: str
    seed: int
    arrived: float
    prepared: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    generations: list[ChoiceOutput] = field(default_factory=list)
    failovers: int = 0

    async def run(self) -> AsyncGenerator[tuple[int, OutputDelta]]:
        """Yield (choice, piece); each choice ends with a piece that has a finish reason.

        Choices count prompt by prompt. Whoever stops listening must close the iterator.

        Raises:
            ApiError: refused, overloaded, or no verifier can finish.
        """
        services = self.services
        places = len(self.prompts) * self.body.n
        placement = Placement(services.fleet, services.sessions, self.model, self.session_id)
        try:
            services.admission.enter(places)
        except ApiError as error:
            services.metrics.failure.labels(str(error.status)).inc()
            raise
        services.metrics.running.inc(places)
        try:
            runners = [
                self._runner(placement, prompt, choice)
                for prompt in self.prompts
                for choice in range(self.body.n)
            ]
            self.generations = [runner.generation for runner in runners]
            watches = [LatencyRecorder(services.metrics, self.arrived) for _ in runners]
            async with aclosing(merge([runner.run() for runner in runners])) as pieces:
                async for index, piece in pieces:
                    watches[index].see(piece, self.generations[index])
                    if self.first_token is None and piece.tokens:
                        self.first_token = time.monotonic()
                    self.failovers = sum(runner.moves for runner in runners)
                    yield index, piece
        except ApiError as error:
            services.metrics.failure.labels(str(error.status)).inc()
            raise
        finally:
            services.metrics.running.dec(places)
            services.admission.leave(places)
            self._account()

    def _runner(self, placement: Placement, prompt: Prompt, choice: int) -> ChoiceRunner:
        body, model = self.body, self.model

        def decode(ids: list[int]) -> str:
            return model.tokenizer.decode(ids, skip_special_tokens=body.skip_special_tokens)

        own_ends = frozenset[int]() if body.ignore_eos else model.eos_token_ids
        generation = ChoiceOutput(
            prompt.tokens,
            max_tokens=prompt.max_tokens,
            min_tokens=body.min_tokens,
            end_ids=own_ends.union(body.stop_token_ids),
            detokenizer=Detokenizer(decode, model.tokenizer.letter),
            stops=StopFinder(body.stops),
        )
        request = verifier_pb2.GenerateRequest(
            request_id=self.request_id,
            session_id=self.session_id,
            sampling=body.sampling(self.seed, prompt.max_tokens, self.top_logprobs),
            speculation=body.drafting(),
            choice_index=choice,
            cache_salt=body.cache_salt,
        )
        settings = self.services.settings
        return ChoiceRunner(
            self.services.fleet,
            placement,
            generation,
            request,
            self.arrived + settings.request_timeout_s,
            settings.failover_timeout_s,
            self.services.metrics,
        )

    def _account(self) -> None:
        """Count what was generated, whether or not anybody heard the end of it."""
        metrics = self.services.metrics
        metrics.prompt_tokens.inc(sum(len(prompt.tokens) for prompt in self.prompts))
        metrics.generation_tokens.inc(sum(len(g.output) for g in self.generations))
        spent = self.spent()
        looked_up, found = sum(spent.lookup_proposed_at), sum(spent.lookup_accepted_at)
        metrics.accepted_tokens.labels("lookup").inc(found)
        metrics.accepted_tokens.labels("chain").inc(spent.accepted - found)
        metrics.draft_tokens.labels("lookup").inc(looked_up)
        metrics.draft_tokens.labels("chain").inc(spent.accepted + spent.rejected - looked_up)
        log.info(
            "generated",
            session_id=self.session_id,
            prompt_tokens=sum(len(prompt.tokens) for prompt in self.prompts),
            output_tokens=sum(len(g.output) for g in self.generations),
            finish_reasons=[g.finish_reason for g in self.generations],
            accepted=spent.accepted,
            rejected=spent.rejected,
            rounds=spent.rounds,
            failovers=self.failovers,
        )
        if any(g.finish_reason for g in self.generations):
            length = max(len(g.prompt) + len(g.output) for g in self.generations)
            self.services.spawn(self.services.sessions.count(self.session_id, length))

    def spent(self) -> GenerationUsage:
        total = GenerationUsage()
        for generation in self.generations:
            total.add(generation.spent)
        return total

    def usage(self) -> dict[str, Any]:
        """Write OpenAI's `usage`. A prompt counts once, however many choices continue it."""
        spent = self.spent()
        prompt = sum(len(p.tokens) for p in self.prompts)
        completion = sum(len(g.output) for g in self.generations)
        first_choices = self.generations[:: self.body.n]
        cached = sum(min(g.spent.cached_tokens, len(g.prompt)) for g in first_choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {
                "accepted_prediction_tokens": spent.accepted,
                "rejected_prediction_tokens": spent.rejected,
            },
        }

    def report(self) -> dict[str, Any]:
        """Say where the request's time and drafts went: sums over its choices."""
        spent = self.spent()
        now = time.monotonic()
        return {
            "session_id": self.session_id,
            "seed": self.seed,
            "rounds": spent.rounds,
            "drafted_rounds": spent.drafted_rounds,
            "proposed_at": spent.proposed_at,
            "accepted_at": spent.accepted_at,
            "lookup_proposed_at": spent.lookup_proposed_at,
            "lookup_accepted_at": spent.lookup_accepted_at,
            "failovers": self.failovers,
            "timings": {
                **spent.timings,
                "prepare_us": _micros(self.prepared - self.arrived),
                "first_token_us": _micros((self.first_token or now) - self.arrived),
                "total_us": _micros(now - self.arrived),
            },
        }


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
