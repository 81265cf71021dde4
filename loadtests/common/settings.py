"""Settings that the measuring commands share."""

from __future__ import annotations

from pathlib import Path

from pydantic import field_validator

from specserve.settings import Settings, setting


class ReportSettings(Settings):
    """Where the numbers go."""

    output: str | None = setting(None, "File for all numbers as JSON, every request included.")

    @field_validator("output")
    @classmethod
    def _check_output(cls, output: str | None) -> str | None:
        if output and not Path(output).absolute().parent.is_dir():
            raise ValueError("must be in a folder that exists")
        return output


class MeasuringSettings(ReportSettings):
    """What is asked of which stack, and where the numbers go."""

    prompts: str = setting(..., "File of JSON lines; `turns` of each is a list of user messages.")
    url: str = setting("http://127.0.0.1:8000", "The gateway.")
    api_key: str | None = setting(None, "Key for the gateway.")
