"""A small network that learns to fine-tune a frozen, pretrained model to a new task, in a few steps."""

from metafast.adapt._backbone import Backbone, freeze
from metafast.adapt._fine_tuner import MetaFineTuner
from metafast.adapt._pretrain import pretrain, pretrained
from metafast.adapt._questions import QuestionTasks, question_tasks
from metafast.adapt._report import Report
from metafast.adapt._sites import Site
from metafast.adapt._task_model import TaskModel

__all__ = [
    "Backbone",
    "MetaFineTuner",
    "QuestionTasks",
    "Report",
    "Site",
    "TaskModel",
    "freeze",
    "pretrain",
    "pretrained",
    "question_tasks",
]
