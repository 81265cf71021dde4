"""Settings of the one-command stack."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from deploy.local.default_model import SMOLLM2, is_intact
from specserve.cache_dir import cache_folder
from specserve.model_source import ModelSource
from specserve.settings import Settings, setting

SHIPPED_DRAFTER = (
    Path(__file__).resolve().parents[2] / "drafter_svc/checkpoints/smollm2-135m-instruct"
)
# Alone or before a colon and a folder: the drafter has no process of its own.
LOCAL = "local"


def _check_target(text: str) -> str:
    try:
        ModelSource.parse(text or SMOLLM2.name)
    except ValueError:
        raise ValueError(
            "must be a Hugging Face id, or a folder or .gguf file that is there"
        ) from None
    return text


def _check_drafter(text: str) -> str:
    if text != "off" and not _folder(text).is_dir():
        raise ValueError("must be a folder that is there, local, local:FOLDER, or off for none")
    return text


def _folder(drafter: str) -> Path:
    """Where the drafter's checkpoint is; that of the shipped one where none is named."""
    kind, _, rest = drafter.partition(":")
    path = rest if kind == LOCAL else drafter
    return Path(path).expanduser().absolute() if path else SHIPPED_DRAFTER


class StackSettings(Settings):
    """Starts Valkey, drafter, verifier and gateway on this machine and stops them on Ctrl-C.

    The services read their own HOLDCOURSE_ variables from the same environment; a service's
    `--help` lists them: python -m gateway --help.
    """

    host: str = setting("127.0.0.1", "Address the gateway listens on.")
    port: int = setting(8000, "TCP port of the gateway.", ge=1, lt=1 << 16)
    target: Annotated[str, AfterValidator(_check_target)] = setting(
        "", "Hugging Face id, folder or .gguf file; empty for SmolLM2-135M-Instruct."
    )
    drafter: Annotated[str, AfterValidator(_check_drafter)] = setting(
        "", "Folder of the drafter's checkpoint; empty for the one that is shipped, local or "
        "local:FOLDER for a drafter in the verifier's process, off for none.",
    )  # fmt: skip
    cache: str = setting(
        "", "Folder for the model and the logs; empty for holdcourse in the user's cache."
    )
    drain_grace_s: float = setting(
        30.0, "Seconds that running requests get when the stack is stopped.", gt=0, le=86_400
    )

    @property
    def cache_folder(self) -> Path:
        """Where the model and the logs are kept."""
        return cache_folder(self.cache)

    @property
    def drafts_locally(self) -> bool:
        """Whether the drafter is to run in the verifier's process."""
        return self.drafter.partition(":")[0] == LOCAL

    @property
    def checkpoint(self) -> Path | None:
        """The drafter's checkpoint folder, None where no drafter is wanted, or none is known."""
        if self.drafter == "off" or not (self.drafter or self.serves_default):
            return None
        return _folder(self.drafter)

    @property
    def serves_default(self) -> bool:
        """Whether the target is the file that the shipped drafter was made for."""
        return not self.target or is_intact(Path(self.target).expanduser(), SMOLLM2)
