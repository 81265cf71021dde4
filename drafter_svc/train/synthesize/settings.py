"""Settings of a synthesis; every field is a flag of ``drafter_svc.train.synthesize``."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SynthesizeSettings:
    """Lengths are in tokens. Raises ``ValueError`` naming the field and its limit."""

    verifiers: list[str] = field(metadata={"help": "HOST:PORT of one or more verifiers"})
    out: str = field(
        metadata={"help": "JSON lines to write, or to go on with; OUT.meta.json tells their origin"}
    )
    count: int = field(
        default=1000, metadata={"help": "conversations that the target begins itself"}
    )
    prompts: list[str] = field(
        default_factory=list,
        metadata={
            "help": 'files of JSON lines with "prompt", "question", "turns" or "messages", or '
            "Hugging Face data sets ID[[:CONFIG]:SPLIT]; answers in them are written anew"
        },
    )
    turns: int = field(default=1, metadata={"help": "user turns of a conversation at most"})
    max_user_tokens: int = field(default=256, metadata={"help": "of a user turn at most"})
    max_answer_tokens: int = field(default=512, metadata={"help": "of an answer at most"})
    user_temperature: float = field(default=1.0, metadata={"help": "at which user turns are drawn"})
    user_top_p: float = field(default=0.95, metadata={"help": "at which user turns are drawn"})
    max_loop_share: float = field(
        default=0.2,
        metadata={"help": "turns with a greater share of repeated 8-grams are dropped"},
    )
    max_similarity: float = field(
        default=0.7,
        metadata={"help": "conversations whose user turns are more alike are dropped (Jaccard)"},
    )
    seed: int = field(default=0, metadata={"help": "of everything that is drawn"})

    def __post_init__(self) -> None:
        if not self.verifiers:
            raise ValueError("verifiers must name at least one HOST:PORT")
        if self.count < 0 or not (self.count or self.prompts):
            raise ValueError(f"count must be above 0 where there are no prompts, got {self.count}")
        for name in ("turns", "max_user_tokens", "max_answer_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.user_temperature <= 2:
            raise ValueError(f"user_temperature must be in (0, 2], got {self.user_temperature}")
        for name in ("user_top_p", "max_loop_share", "max_similarity"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
