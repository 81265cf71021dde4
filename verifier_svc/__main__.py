"""python -m verifier_svc: wire the parts and serve."""

from __future__ import annotations

import asyncio

from specwire import kernels, limits, logs, serving
from specwire.apart import apart
from specwire.v1 import verifier_pb2 as pb
from specwire.v1.verifier_pb2_grpc import add_VerifierServiceServicer_to_server
from specwire.version import version
from verifier_svc.build import (
    build_engine,
    build_target,
    document_length,
    find_target,
    tokenizer_files,
)
from verifier_svc.dispatcher import Dispatcher
from verifier_svc.drafters import drafter_port
from verifier_svc.follower import follow
from verifier_svc.metrics import Metrics
from verifier_svc.ranks import Ranks
from verifier_svc.service import VerifierServicer
from verifier_svc.settings import VerifierSettings
from verifier_svc.target import Target

_log = logs.get(__name__)


async def main() -> None:
    """Serve until SIGTERM."""
    settings = VerifierSettings.read("verifier_svc")
    logs.configure("verifier")
    ranks = Ranks.join(settings.torch_device)
    if ranks is not None and not ranks.leads:
        follow(build_target(settings, find_target(settings), ranks), ranks)
        return
    serving.check_bindable(settings.listen)
    source = find_target(settings)
    files = tokenizer_files(settings, source)  # what is wrong with them takes no loading to find
    target = apart(build_target, settings, source, ranks)
    metrics = Metrics()
    serving.serve_metrics(settings.listen, settings.metrics_port)
    port = drafter_port(settings, target)
    dispatcher = Dispatcher()
    engine = apart(build_engine, settings, target, port, dispatcher.deliver, metrics)
    servicer = VerifierServicer(
        engine=engine,
        dispatcher=dispatcher,
        model=describe(settings, target, sorted(files), engine.max_model_len),
        tokenizer_files=files,
        max_waiting=settings.max_waiting,
        max_document_len=document_length(settings, target),
        metrics=metrics,
    )
    server = serving.ServiceServer(
        pb.DESCRIPTOR.services_by_name["VerifierService"].full_name,
        lambda s: add_VerifierServiceServicer_to_server(servicer, s),
    )
    servicer.on_drain = server.drain
    engine.start()
    if port is not None:
        port.start(engine.post)
    _log.info("target loaded", target=target.name, fingerprint=target.fingerprint[:12])
    # A verifier that cannot run must not look alive: its process ends with its engine.
    serve = asyncio.create_task(
        serving.serve(
            server,
            settings.listen,
            grace=settings.drain_grace_s,
            on_drain=servicer.wind_up,
        )
    )
    died = asyncio.create_task(asyncio.to_thread(engine.join))
    try:
        await asyncio.wait({serve, died}, return_when=asyncio.FIRST_COMPLETED)
        if not serve.done():
            raise RuntimeError("The engine's thread has ended.")
        serve.result()
    finally:
        if port is not None:
            await port.close()
        engine.stop()
        if ranks is not None:
            ranks.leave()


def describe(
    settings: VerifierSettings, target: Target, files: list[str], max_model_len: int
) -> pb.Model:
    """What DescribeModel answers."""
    return pb.Model(
        name=target.name,
        fingerprint=target.fingerprint,
        dtype=str(target.dtype).removeprefix("torch."),
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        num_layers=target.num_layers,
        max_model_len=max_model_len,
        max_sequences=settings.sequences,
        max_top_logprobs=limits.MAX_TOP_LOGPROBS,
        max_draft_tokens=settings.max_draft_tokens,
        eos_token_ids=sorted(target.eos_token_ids),
        tokenizer_files=files,
        version=version(),
        speculation=settings.speculation and settings.drafter is not None,
        device=target.device.type,
        kernels=kernels.level() or "",
    )


if __name__ == "__main__":
    serving.run("verifier_svc", main)
