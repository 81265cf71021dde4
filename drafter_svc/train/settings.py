"""Settings of a training run; every field is a command-line flag of ``drafter_svc.train``."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Lengths and budgets are in tokens. Raises ``ValueError`` naming the field and its limit."""

    target: str = field(metadata={"help": "Hugging Face id, folder or .gguf file of the target"})
    data: str = field(metadata={"help": 'JSON lines with "messages", answers by the target'})
    out: str = field(metadata={"help": "folder of the run: checkpoint/, last.pt, log.csv"})
    epochs: float = field(default=1.0, metadata={"help": "passes over the data; may be a fraction"})
    minutes: float = field(
        default=0.0,
        metadata={"help": "end the run, schedule included, after this time; 0: no limit"},
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    warm_up: float = field(default=0.02, metadata={"help": "share of the run with rising rate"})
    clip: float = field(default=1.0, metadata={"help": "largest gradient norm"})
    batch_tokens: int = field(default=2048, metadata={"help": "tokens in a batch, with padding"})
    max_length: int = field(default=2048, metadata={"help": "conversations are cut to this"})
    chain_steps: int = field(default=4, metadata={"help": "steps of training-time test at the end"})
    stride: int = field(
        default=2, metadata={"help": "chains of more than one step start at every n-th position"}
    )
    draft_vocab: int = field(default=8192, metadata={"help": "size of the draft vocabulary"})
    held_out: int = field(default=64, metadata={"help": "conversations kept for measuring"})
    report_minutes: float = field(
        default=10.0, metadata={"help": "time between measurements; each one writes a checkpoint"}
    )
    seed: int = field(default=0, metadata={"help": "of order, split and initial weights"})

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "clip", "report_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("batch_tokens", "max_length", "chain_steps", "stride", "draft_vocab"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.held_out < 1:
            raise ValueError(f"held_out must be at least 1, got {self.held_out}")
        if self.minutes < 0:
            raise ValueError(f"minutes must not be negative, got {self.minutes}")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up must be in [0, 1), got {self.warm_up}")
