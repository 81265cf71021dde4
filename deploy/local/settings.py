"""Settings of the one-command stack."""

from pathlib import Path

from specwire.cache import cache_folder
from specwire.settings import Settings, StartError, setting
from specwire.target import TargetSource

SHIPPED_DRAFTER = (
    Path(__file__).resolve().parents[2] / "drafter_svc/checkpoints/smollm2-135m-instruct"
)
# Alone or before a colon and a folder: the drafter has no process of its own.
LOCAL = "local"


class StackSettings(Settings):
    """Starts Valkey, drafter, verifier and gateway on this machine and stops them on Ctrl-C.

    The services read their own HOLDCOURSE_ variables from the same environment; a service's
    `--help` lists them: python -m gateway --help.
    """

    host: str = setting("127.0.0.1", "Address the gateway listens on.")
    port: int = setting(8000, "TCP port of the gateway.", ge=1, lt=1 << 16)
    target: str = setting(
        "", "Hugging Face id, folder or .gguf file; empty for SmolLM2-135M-Instruct."
    )
    drafter: str = setting(
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
        """The drafter's checkpoint folder, None where no drafter is wanted.

        Raises:
            StartError: it is not there.
        """
        if self.drafter == "off" or (self.target and not self.drafter):
            return None
        path = self.drafter
        if self.drafts_locally:
            path = path.removeprefix(LOCAL).removeprefix(":")
        folder = Path(path).expanduser() if path else SHIPPED_DRAFTER
        if not folder.is_dir():
            raise StartError(f"--drafter: {folder} is not a folder; `off` runs without a drafter.")
        return folder.absolute()

    def check_target(self) -> None:
        """Looks whether a target that is a path is there.

        Raises:
            StartError: it is not.
        """
        if self.target:
            try:
                TargetSource.parse(self.target)
            except ValueError as error:
                raise StartError(f"--{error}") from None
