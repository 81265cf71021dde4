"""What serves, in words for the person who started it."""

import os
import shutil
from collections.abc import Mapping

from specwire.v1 import verifier_pb2 as pb


def describe(model: pb.Model) -> str:
    """One sentence: which model, in which dtype, on what."""
    if model.device != "cpu":
        return f"{model.name} is served in {model.dtype} on {model.device}."
    by = f"kernels for {model.kernels}" if model.kernels else "torch's operators"
    return f"{model.name} is served in {model.dtype} on the CPU, by {by}."


def advice(model: pb.Model, environment: Mapping[str, str] = os.environ) -> str | None:
    """What would make answers several times as fast; None where nothing here would."""
    if model.device != "cpu" or model.kernels:
        return None
    slow = "Answers come at about a fifth of the speed that compiled kernels give"
    compiler = environment.get("CXX") or "g++"
    if environment.get("HOLDCOURSE_COMPILE") == "off":
        return f"{slow}, which HOLDCOURSE_COMPILE=off forbids."
    if shutil.which(compiler) is None:
        return (
            f"{slow}: there is no C++ compiler {compiler}. Install one, "
            "for example by `apt-get install g++`, and start again."
        )
    return f"{slow}; the verifier's log says why there are none."
