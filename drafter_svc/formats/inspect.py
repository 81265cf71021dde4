"""What a checkpoint is, as a short table."""

from drafter_svc.formats.declared import UserOverrides
from drafter_svc.formats.reader import RawCheckpoint
from drafter_svc.model.config import CheckpointError

_TOGGLES = ("fc_norm", "norm_before_fc", "norm_output")


def describe(found: RawCheckpoint, given: UserOverrides) -> list[tuple[str, str]]:
    """Rows of the table. The last one says what stays open, if anything does."""
    values, facts = found.facts.values, found.facts
    trained = sum(t.numel() for n, t in found.tensors.items() if n not in ("d2t", "t2d"))
    rows = [
        ("layout", found.layout),
        ("hash", found.files.digest),
        ("parameters", f"{trained:,} in {_dtypes(found)}, {found.files.weight_bytes:,} bytes"),
        ("width", "{hidden_size}, of the target {target_hidden_size}".format(**values)),
        ("form", "MTP head" if values["mtp_head"] else "EAGLE-3"),
        ("layers", str(values["num_hidden_layers"])),
        ("heads", "{num_attention_heads}, {num_key_value_heads} for keys".format(**values)),
        ("head width", str(values["head_dim"])),
        ("inner width", str(values["intermediate_size"])),
        ("attention", _attention(found)),
        ("rope", f"base {values['rope_theta']:g}, {facts.values['rope_scaling'] or 'not scaled'}"),
        ("vocabulary", _vocabulary(found)),
        ("embeddings", "its own" if values["own_embeddings"] else "the target's"),
        ("head", "its own" if values["own_head"] else "the target's"),
        *((name, _yes(values[name])) for name in _TOGGLES),
    ]
    return rows + _open_facts(found, given)


def _open_facts(found: RawCheckpoint, given: UserOverrides) -> list[tuple[str, str]]:
    try:
        built = found.build(given, fingerprint_needed=False)
    except CheckpointError as error:
        return [("not usable", str(error))]
    config = built.config
    rows = [
        ("norm_before_residual", _yes(config.norm_before_residual)),
        ("aux layers", f"{', '.join(map(str, config.aux_layers))} (input to layer)"),
        ("draft temperature", f"{config.draft_temperature:g}"),
        ("target", config.target_fingerprint or "not named: convert it with --target"),
    ]
    answers = config.training.get("answer_tokens")
    rows += [] if answers is None else [("trained on", f"{answers:,} answer tokens")]
    return rows + [("note", sentence) for sentence in built.notes]


def _attention(found: RawCheckpoint) -> str:
    values = found.facts.values
    window = values["sliding_window"]
    parts = ["full" if window is None else f"window of {window}"]
    parts += ["bias"] if values["attention_bias"] else []
    parts += ["queries and keys normed"] if values["qk_norm"] else []
    return ", ".join(parts)


def _vocabulary(found: RawCheckpoint) -> str:
    sizes = "{draft_vocab_size} of {vocab_size}".format(**found.facts.values)
    return sizes if "d2t" in found.tensors else f"{sizes}, no d2t"


def _dtypes(found: RawCheckpoint) -> str:
    dtypes = {t.dtype for t in found.tensors.values() if t.is_floating_point()}
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _yes(value: bool) -> str:
    return "yes" if value else "no"
