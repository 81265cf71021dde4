"""One update of the drafter from one or several lessons."""

from collections.abc import Sequence

import torch

from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.train.objective.loss import Objective, chain_loss, count_columns
from drafter_svc.train.objective.optim import MasterOptimizer
from drafter_svc.train.objective.teacher import draftable, teach
from drafter_svc.train.objective.ttt import plan_chain, unroll
from drafter_svc.train.run.distill_batch import DistillBatch
from drafter_svc.train.run.process_group import ProcessGroup
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.target.target import Target


class Learner:
    """A drafter in bf16 on the target's device, and its optimizer.

    ``draft_ids`` int64 ``[draft_vocab]`` are ascending target ids.
    """

    def __init__(
        self,
        settings: TrainSettings,
        target: Target,
        drafter: EagleDrafter,
        draft_ids: torch.Tensor,
        world: ProcessGroup,
    ) -> None:
        self.drafter = drafter.to(target.head.device)
        self.draft_ids = draft_ids.to(target.head.device)
        self.optimizer = MasterOptimizer(
            self.drafter, clip=settings.clip, muon=settings.optimizer == "muon"
        )
        self._settings, self._world = settings, world
        self._objective = Objective(settings.loss, settings.step_weights)
        self._embedding = target.embedding
        self._head = target.head[self.draft_ids]
        self._vocabulary = torch.zeros(len(target.head), dtype=torch.bool, device=self._head.device)
        self._vocabulary[self.draft_ids] = True

    def learn(
        self, lessons: Sequence[DistillBatch], steps: int, phase: int, rate: float
    ) -> list[float]:
        """Update with this process's ``lessons`` and those of the others.

        Every mean of the loss runs over the lessons of all processes together. Returns the mean
        divergence of each chain step in this process's last lesson.
        """
        plans = [
            plan_chain(
                lesson.batch,
                steps,
                stride=self._settings.stride,
                phase=phase,
                prompts=self._settings.teach_prompts,
            )
            for lesson in lessons
        ]
        inside = [draftable(lesson.verdicts, self._vocabulary) for lesson in lessons]
        counts = torch.stack(
            [count_columns(plan, mask) for plan, mask in zip(plans, inside, strict=True)]
        ).sum(0)
        self._world.total([counts])
        means: list[float] = []
        for lesson, plan in zip(lessons, plans, strict=True):
            teacher = teach(lesson.final, self._head, self._vocabulary, lesson.verdicts)
            hidden = unroll(self.drafter, self._embedding, lesson.batch, lesson.features, plan)
            loss, means = chain_loss(self.drafter, plan, hidden, teacher, self._objective, counts)
            if loss.requires_grad:
                torch.autograd.backward(loss)
            self.optimizer.gather()
        self._world.total(self.optimizer.gradients)
        self.optimizer.step(rate)
        return means
