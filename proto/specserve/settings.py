"""Settings of a service: flags and environment variables alike, read once."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

ENV_PREFIX = "HOLDCOURSE_"


class StartError(Exception):
    """The service cannot start; the message is one sentence for the operator."""


def setting(default: Any, help: str, *, env: str | None = None, **limits: Any) -> Any:
    """A field of `Settings`.

    Args:
        default: what holds where neither flag nor variable is given; `...` makes it required.
        help: one line for `--help`.
        env: the environment variable; by default `HOLDCOURSE_` and the field's name.
        limits: constraints as pydantic takes them: ge, le, gt, lt, pattern, ...
    """
    extra: dict[str, Any] = {"env": env} if env else {}
    return Field(default, description=help, json_schema_extra=extra, **limits)


def check_address(text: str) -> str:
    """The text itself, if it is HOST:PORT; ValueError where it is not."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdecimal() and int(port) < 1 << 16):
        raise ValueError("must be HOST:PORT")
    return text


def _none_for_auto(value: Any) -> Any:
    return None if value == "auto" else value


# HOST:PORT; port 0 takes a free one.
Address = Annotated[str, AfterValidator(check_address)]
# TCP port; 0 switches the listener off.
Port = Annotated[int, Field(ge=0, lt=1 << 16)]


def _check_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ValueError("must be auto, cpu, cuda or one of several GPUs such as cuda:1")
    return text


# A device as torch names them, or `auto`: see `speckernels.device.pick_device`.
Device = Annotated[str, AfterValidator(_check_device)]
#: A level of CPU instructions, each of which has what those before it have.
Level = Literal["plain", "avx2", "avx512", "avx512_bf16", "amx"]
#: A level, or the fastest one that the CPU has.
CpuLevel = Literal["auto", Level]
#: Whether to compile kernels: if it works, or fail if it does not, or not at all.
Compile = Literal["auto", "on", "off"]
# Bytes, also as 512MiB or 4GB.
Size = ByteSize
# A number or a size, or None for `auto`: the machine decides.
AutoInt = Annotated[int | None, BeforeValidator(_none_for_auto)]
AutoSize = Annotated[ByteSize | None, BeforeValidator(_none_for_auto)]


class Settings(BaseModel):
    """Base of a service's settings. A flag wins over its variable, which wins over the default.

    Field `kv_memory` is the flag `--kv-memory`. A boolean flag stands for `on` without a value.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def read(
        cls,
        program: str,
        arguments: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """Read flags (by default the process's) and environment.

        Raises:
            StartError: the first bad value, unknown flag or missing setting.
        """
        environment = os.environ if environment is None else environment
        fields = cls.model_fields
        flags = vars(_parser(program, cls).parse_args(arguments))
        variables = {
            name: environment[_variable(name, field)]
            for name, field in fields.items()
            if environment.get(_variable(name, field))
        }
        try:
            return cls.model_validate(variables | flags)
        except ValidationError as error:
            first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if name not in fields:
            raise StartError(f"{_reason(first)}.")
        variable = _variable(name, fields[name])
        if first["type"] == "missing":
            raise StartError(f"{_flag(name)} or {variable} is required.")
        source = variable if name in variables and name not in flags else _flag(name)
        raise StartError(f"{source}: {_reason(first)}, {first['input']!r} was given.")

    @classmethod
    def variables(cls) -> set[str]:
        """The names of the environment variables that are read."""
        return {_variable(name, field) for name, field in cls.model_fields.items()}


def check(program: str, settings: type[Settings]) -> int:
    """Try the process's flags and environment, for who is about to start the service with them.

    Prints the variables that the service reads, or the sentence that it would refuse to start with.

    Returns:
        The exit status, 2 for a refusal.
    """
    try:
        settings.read(program)
    except StartError as error:
        print(error, file=sys.stderr)
        return 2
    print(*sorted(settings.variables()), sep="\n")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StartError(f"{message}; see --help.")


def _parser(program: str, settings: type[Settings]) -> argparse.ArgumentParser:
    parser = _Parser(program, allow_abbrev=False, description=settings.__doc__)
    for name, field in settings.model_fields.items():
        default = "required" if field.is_required() else f"default {_shown(field.default)}"
        switch: dict[str, Any] = {"nargs": "?", "const": "on"} if _is_switch(field) else {}
        parser.add_argument(
            _flag(name),
            dest=name,
            default=argparse.SUPPRESS,
            metavar="on|off" if switch else name.rpartition("_")[2].upper(),
            help=f"{field.description} [{_variable(name, field)}; {default}]".replace("%", "%%"),
            **switch,
        )
    return parser


def _is_switch(field: FieldInfo) -> bool:
    return field.annotation is bool or bool in get_args(field.annotation)


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default is None else str(default)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra
    own = extra.get("env") if isinstance(extra, dict) else None
    return str(own) if own else ENV_PREFIX + name.upper()


def _reason(error: ErrorDetails) -> str:
    match error["type"]:
        case "bool_parsing":
            return "must be on or off"
        case "byte_size":
            return "must be a size such as 512MiB"
        case _:
            message = error["msg"].removeprefix("Value error, ")
            return re.sub("^(Input|String) should", "must", message.rstrip("."))
