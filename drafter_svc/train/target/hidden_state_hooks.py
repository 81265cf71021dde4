"""States inside a target, kept while a forward passes them."""

from typing import Any

from torch import Tensor, nn

#: ``[B, T, H]`` by the number of the layer that the state enters. The number of layers stands for
#: what leaves the last one, before the final norm (transformers' ``hidden_states`` has it normed).
States = dict[int, Tensor | None]


def keep_states(body: Any) -> None:
    """Let forwards of ``body``, a stack of decoder ``layers``, keep states.

    A forward that is given ``captured``, a ``States`` with the wanted numbers as keys, fills in
    the values. They travel with the forward, so that two of them may run at once.
    """
    last = len(body.layers)
    for index, layer in enumerate(body.layers):
        layer.register_forward_pre_hook(_keep_input(index), with_kwargs=True)
    body.layers[-1].register_forward_hook(_keep_output(last), with_kwargs=True)


def _keep_input(index: int) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured: States = kwargs.get("captured", {})
        if index in captured:
            captured[index] = args[0] if args else kwargs["hidden_states"]

    return hook


def _keep_output(index: int) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        captured: States = kwargs.get("captured", {})
        if index in captured:
            captured[index] = output[0] if isinstance(output, tuple) else output

    return hook
