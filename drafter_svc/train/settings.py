"""Settings of a training run; every field is a command-line flag of ``drafter_svc.train``."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Lengths and budgets are in tokens. Raises ``ValueError`` naming the field and its limit."""

    target: str = field(metadata={"help": "Hugging Face id, folder or .gguf file of the target"})
    data: list[str] = field(
        metadata={
            "help": 'JSON-lines files of {"messages": ...}, answers by the target, or {"text": ...}'
        }
    )
    out: str = field(
        metadata={"help": "folder of the run: checkpoint/, last.pt, log.csv, curve.svg"}
    )
    init: str = field(
        default="",
        metadata={"help": "checkpoint folder whose weights, vocabulary and arms to start from"},
    )
    verifiers: list[str] = field(
        default_factory=list,
        metadata={"help": "addresses of verifiers that run the target; none: it runs here"},
    )
    device: str = field(default="cpu", metadata={"help": "of the training: cpu, cuda, cuda:1"})
    epochs: float = field(default=1.0, metadata={"help": "passes over the data; may be a fraction"})
    minutes: float = field(
        default=0.0,
        metadata={"help": "end the run, schedule included, after this time; 0: no limit"},
    )
    optimizer: Literal["muon", "adamw"] = field(
        default="muon", metadata={"help": "of the matrices inside; head and norms have AdamW"}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    warm_up: float = field(default=0.02, metadata={"help": "share of the run with rising rate"})
    clip: float = field(default=1.0, metadata={"help": "largest gradient norm"})
    batch_tokens: int = field(default=2048, metadata={"help": "tokens in a batch"})
    accumulate: int = field(
        default=1,
        metadata={"help": "batches per update, over all processes; a multiple of their number"},
    )
    max_length: int = field(
        default=2048, metadata={"help": "conversations are cut to this, texts split"}
    )
    chain_steps: list[int] = field(
        default_factory=lambda: [1, 2, 4],
        metadata={"help": "steps of training-time test, each for an equal share of the tokens"},
    )
    stride: int = field(
        default=2, metadata={"help": "chains of more than one step start at every n-th position"}
    )
    loss: Literal["kl", "lk"] = field(
        default="kl", metadata={"help": "divergence, or its hybrid with the acceptance rate"}
    )
    step_weights: Literal["survival", "fixed"] = field(
        default="survival", metadata={"help": "by the acceptances before, or 0.8**k"}
    )
    teach_prompts: bool = field(
        default=True, metadata={"help": "learn the first step from prompt positions too"}
    )
    draft_vocab: int = field(default=8192, metadata={"help": "size of the draft vocabulary"})
    aux_layers: list[int] = field(
        default_factory=list,
        metadata={
            "help": "layers whose inputs are captured, where the number of layers stands for the "
            "last state before the final norm; none: low, middle, high"
        },
    )
    layers: int = field(default=1, metadata={"help": "decoder layers of a new drafter"})
    mtp_head: bool = field(
        default=False,
        metadata={
            "help": "the form of a multi-token-prediction head: the last state and the embedding "
            "are projected to what a plain layer reads"
        },
    )
    fc_norm: bool = field(default=True, metadata={"help": "an RMSNorm per captured state"})
    norm_output: bool = field(default=True, metadata={"help": "recycle the state after the norm"})
    norm_before_residual: bool = field(
        default=False, metadata={"help": "normalize the state before the residual too"}
    )
    norm_before_fc: bool = field(
        default=False, metadata={"help": "one RMSNorm over all captured states"}
    )
    sliding_window: int = field(
        default=0, metadata={"help": "keys that a query sees, its own included; 0: all"}
    )
    feature_cache_gib: float = field(
        default=0.0,
        metadata={"help": "disk space in the run's folder for the target's states; 0: none"},
    )
    held_out: int = field(default=64, metadata={"help": "documents kept for measuring"})
    report_minutes: float = field(
        default=10.0, metadata={"help": "time between measurements; each one writes a checkpoint"}
    )
    seed: int = field(default=0, metadata={"help": "of order, split and initial weights"})

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "clip", "report_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        counts = ("batch_tokens", "accumulate", "stride", "draft_vocab", "held_out", "layers")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("minutes", "feature_cache_gib", "sliding_window"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.max_length < 3:
            raise ValueError(f"max_length must be at least 3, got {self.max_length}")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up must be in [0, 1), got {self.warm_up}")
        if not self.data:
            raise ValueError("data must name at least one file")
        if not self.chain_steps or min(self.chain_steps) < 1:
            raise ValueError(f"chain_steps must be numbers from 1 on, got {self.chain_steps}")
        if 0 < self.sliding_window <= max(self.chain_steps):
            raise ValueError(
                f"sliding_window must be above the {max(self.chain_steps)} chain steps, "
                f"got {self.sliding_window}"
            )
