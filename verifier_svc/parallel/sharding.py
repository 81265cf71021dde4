"""A target split over ranks by transformers' plan, as plain layers over local weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig

from speckernels.fingerprint import fingerprint_of_rows
from specserve.settings import StartError
from verifier_svc.parallel.rank_group import RankGroup

_SPLIT = {"colwise", "rowwise"}
# No layer of these is split; transformers' wrapper does nothing without gradients.
_WHOLE = {"replicate", "replicated_with_grad_allreduce"}


def shard_model(config: Any, ranks: RankGroup, *, trust_remote_code: bool) -> DistributedConfig:
    """How `from_pretrained` splits a target: its layers by its own plan, but not its vocabulary.

    Whole embeddings and a whole head cost each rank their memory, and no message a step.

    Raises:
        StartError: its heads cannot be dealt evenly, or its plan has layers that are not served.
    """
    text = config.get_text_config()
    kv_heads = getattr(text, "num_key_value_heads", text.num_attention_heads)
    if kv_heads % ranks.world:
        raise StartError(
            f"target: its {kv_heads} key-value heads cannot be dealt to {ranks.world} ranks evenly."
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    vocabulary = {model.get_input_embeddings(), model.get_output_embeddings()}
    whole = {name for name, module in model.named_modules() if module in vocabulary}
    plan = {name: style for name, style in model.tp_plan.items() if name not in whole}
    if other := set(plan.values()) - _SPLIT - _WHOLE:
        raise StartError(
            f"target: {type(model).__name__} cannot be split over ranks: its plan has layers of "
            f"type {', '.join(sorted(other))}."
        )
    split_names = {name.rpartition(".")[2] for name, style in plan.items() if style in _SPLIT}
    if not {"q_proj", "k_proj", "v_proj", "o_proj"} <= split_names:
        raise StartError(f"target: {type(model).__name__} has no plan that splits its heads.")
    return DistributedConfig(tp_size=ranks.world, tp_plan=dict.fromkeys(sorted(whole), "replicate"))


def fingerprint(model: torch.nn.Module) -> str:
    """`target_fingerprint` of the whole model; all ranks that share it call this."""
    return fingerprint_of_rows(
        (name, parameter.shape, _first_row(parameter.detach()))
        for name, parameter in model.named_parameters()
    )


def _first_row(parameter: torch.Tensor) -> torch.Tensor:
    """The first row [1, ...] of a parameter, gathered from the ranks that hold parts of it."""
    if not isinstance(parameter, DTensor):
        return parameter[:1] if parameter.dim() else parameter
    mesh, placements, row = parameter.device_mesh, parameter.placements, parameter.to_local()[:1]
    if placements[0] == Shard(0):
        rows: torch.Tensor = DTensor.from_local(row, mesh, placements).full_tensor()
        return rows[:1]
    shape = torch.Size((1, *parameter.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    whole = DTensor.from_local(row, mesh, placements, shape=shape, stride=stride)
    gathered: torch.Tensor = whole.full_tensor()
    return gathered


def unwrap_dtensors(model: PreTrainedModel, ranks: RankGroup) -> None:
    """Replace transformers' distributed layers by plain ones over this rank's weights.

    What is packed, compiled or read later then needs to know nothing of ranks.
    """
    for name, module in list(model.named_modules()):
        # transformers wraps the forward of what its plan names.
        if getattr(module, "_is_hooked", False):
            vars(module).pop("forward", None)
        weight = getattr(module, "weight", None)
        if not isinstance(weight, DTensor):
            continue
        assert isinstance(module, torch.nn.Linear), f"{name} is split but no linear layer"
        by_inputs = weight.placements != (Shard(0),)
        for key, parameter in list(module.named_parameters(recurse=False)):
            local = (
                parameter.to_local().contiguous() if isinstance(parameter, DTensor) else parameter
            )
            setattr(module, key, torch.nn.Parameter(local.detach(), requires_grad=False))
        module.out_features, module.in_features = module.weight.shape
        if by_inputs:
            model.set_submodule(name, RowParallelLinear(module, ranks.layers))


class RowParallelLinear(torch.nn.Module):
    """A linear layer split over its inputs: the ranks' products are summed, then the bias added."""

    def __init__(self, linear: torch.nn.Linear, group: dist.ProcessGroup | None) -> None:
        """Take over a layer that holds this rank's columns of the weights, and the whole bias."""
        super().__init__()
        self._bias = linear.bias
        linear.register_parameter("bias", None)
        self.linear = linear
        self._group = group

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map this rank's part [..., in / ranks] to the whole [..., out]."""
        product: torch.Tensor = self.linear(rows)
        dist.all_reduce(product, group=self._group)
        return product if self._bias is None else product + self._bias
