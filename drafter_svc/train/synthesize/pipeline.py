"""The synthesis: conversations in, in order of their index, at the verifiers' full batch."""

import asyncio
import platform
from collections import deque
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from tqdm import tqdm

from drafter_svc.train.synthesize.chat_template import Chat
from drafter_svc.train.synthesize.dedup import DUPLICATE_RULE, LOOP_RULE, NearDuplicates
from drafter_svc.train.synthesize.jsonl_output import Output
from drafter_svc.train.synthesize.prompt_sources import Plan, open_prompts
from drafter_svc.train.synthesize.settings import SynthesizeSettings
from drafter_svc.train.synthesize.verifier_pool import VerifierPool
from drafter_svc.train.synthesize.writer import Outcome, Writer
from specserve.version import version as own_version
from specwire.v1 import verifier_pb2 as pb

# Conversations begun, for each that runs: one that takes long must not hold up the rest, which
# are kept in memory until it is their turn.
_AHEAD = 4


async def synthesize(settings: SynthesizeSettings) -> dict[str, Any]:
    """Run to the end, or on from where a run before was stopped. Returns the meta data.

    Raises ``ValueError`` for unusable input, ``OSError`` for a disk that takes no more.
    """
    plan = Plan(settings.count, [open_prompts(text) for text in settings.prompts])
    async with VerifierPool(settings.verifiers) as fleet:
        model = fleet.model
        chat = Chat(fleet.files, model.name, model.eos_token_ids)
        ends = frozenset[int]()
        if settings.count or settings.turns > 1:
            ends = chat.check_user_turns(settings.turns)
        output = Output(settings.out, origin(settings, model, plan), len(plan))
        writer = Writer(
            chat, fleet.generate, settings, model.max_model_len, model.fingerprint, ends
        )
        try:
            await _write_all(plan, writer, output, fleet.places)
        finally:
            output.close()
    return output.meta


def origin(settings: SynthesizeSettings, model: pb.Model, plan: Plan) -> dict[str, Any]:
    """Where records come from: what a later run must share to go on."""
    own = asdict(settings)
    for name in ("verifiers", "out", "prompts"):
        del own[name]
    return {
        "target": {"name": model.name, "fingerprint": model.fingerprint, "dtype": model.dtype},
        "settings": own,
        "prompts": [{"source": name, "count": count} for name, count in plan.sources()],
        "rules": {"loop": LOOP_RULE, "near-duplicate": DUPLICATE_RULE},
        "versions": {
            "holdcourse": own_version(),
            "verifier": model.version,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
    }


async def _write_all(plan: Plan, writer: Writer, output: Output, places: int) -> None:
    duplicates = NearDuplicates(writer.settings.max_similarity)
    for record in output.records():
        duplicates.add(_asked(record))
    # Twice as many as there are places: while one conversation is between turns, another runs.
    running = asyncio.Semaphore(2 * places)

    async def write(index: int) -> Outcome:
        async with running:
            try:
                prompt = plan[index]
            except ValueError:
                return Outcome(dropped="no prompt")
            return await writer.write(index, prompt)

    ahead: deque[asyncio.Task[Outcome]] = deque()
    indices = iter(range(output.next, len(plan)))
    bar = tqdm(total=len(plan), initial=output.next, unit="conversation", smoothing=0.05)
    try:
        while True:
            while len(ahead) < _AHEAD * 2 * places and (index := next(indices, None)) is not None:
                ahead.append(asyncio.create_task(write(index)))
            if not ahead:
                break
            outcome = await ahead[0]
            ahead.popleft()
            if outcome.record is not None and not duplicates.add(_asked(outcome.record)):
                outcome = Outcome(dropped="near-duplicate")
            output.add(outcome)
            bar.update()
            tokens = output.meta["answer_tokens"]
            bar.set_postfix_str(f"{output.meta['kept']} kept, {tokens} tokens", refresh=False)
        output.save()
    except (KeyboardInterrupt, asyncio.CancelledError):
        output.save()
        raise
    finally:
        bar.close()
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)


def _asked(record: dict[str, Any]) -> str:
    """The user's side of a conversation."""
    return "\n".join(m["content"] for m in record["messages"] if m["role"] == "user")
