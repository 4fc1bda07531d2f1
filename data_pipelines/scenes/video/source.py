"""Moving scenes as a random-access source."""

import dataclasses
from collections.abc import Callable

from data_pipelines.scenes.exams import video_exam
from data_pipelines.scenes.video import elements
from data_pipelines.sources import base


@dataclasses.dataclass(frozen=True)
class Reels(elements.Elements, base.Examinable):
    """Elements of one task, to train on; the exam asks for all abilities."""

    def exam(self, per_task: int, cut: Callable[[str], str]) -> video_exam.Exam:
        """Questions about the world, `per_task` of each kind, in captions that `cut` shortens as in training."""
        return video_exam.Exam(world=self.world, per_task=per_task, cut=cut)
