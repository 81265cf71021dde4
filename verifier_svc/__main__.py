"""python -m verifier_svc: wire the parts and serve."""

from __future__ import annotations

import asyncio

import speckernels as kernels
from specserve import logs
from specserve import server as grpc_server
from specserve.throwaway_thread import in_throwaway_thread
from specserve.version import version
from specwire import limits
from specwire.v1 import verifier_pb2 as pb
from specwire.v1.verifier_pb2_grpc import add_VerifierServiceServicer_to_server
from verifier_svc.build import (
    build_engine,
    build_target,
    document_length,
    find_target,
    tokenizer_files,
)
from verifier_svc.engine.dispatcher import Dispatcher
from verifier_svc.engine.rank_worker import run_rank_worker
from verifier_svc.metrics import Metrics
from verifier_svc.model.target import Target
from verifier_svc.parallel.rank_group import RankGroup
from verifier_svc.service.servicer import VerifierServicer
from verifier_svc.settings import VerifierSettings
from verifier_svc.speculation.drafter_factory import drafter_port

_log = logs.get(__name__)


async def main() -> None:
    """Serve until SIGTERM."""
    settings = VerifierSettings.read("verifier_svc")
    logs.configure("verifier")
    ranks = RankGroup.join(settings.torch_device)
    if ranks is not None and not ranks.leads:
        run_rank_worker(build_target(settings, find_target(settings), ranks), ranks)
        return
    grpc_server.check_bindable(settings.listen)
    source = find_target(settings)
    files = tokenizer_files(settings, source)  # what is wrong with them takes no loading to find
    target = in_throwaway_thread(build_target, settings, source, ranks)
    metrics = Metrics()
    grpc_server.serve_metrics(settings.listen, settings.metrics_port)
    port = drafter_port(settings, target)
    dispatcher = Dispatcher()
    engine = in_throwaway_thread(build_engine, settings, target, port, dispatcher.deliver, metrics)
    servicer = VerifierServicer(
        engine=engine,
        dispatcher=dispatcher,
        model=describe(settings, target, sorted(files), engine.max_model_len),
        tokenizer_files=files,
        max_waiting=settings.max_waiting,
        max_document_len=document_length(settings, target),
        metrics=metrics,
    )
    server = grpc_server.ServiceServer(
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
        grpc_server.serve(
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
        kernels=kernels.cpu_level() or "",
    )


if __name__ == "__main__":
    grpc_server.run("verifier_svc", main)
