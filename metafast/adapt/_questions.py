"""Tasks of question answering: an article is a task, an answer is a span of its paragraph's tokens."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metafast._checks import integer
from metafast.data import TaskBatch, load
from metafast.data._collate import task_keys
from metafast.data._episodes_base import Episodes
from metafast.metrics import AnswerScores, answer_scores

LONGEST = 30  # tokens of a predicted answer


class Question(NamedTuple):
    """One question: its tokens, where they are in the context (-1: not there), its target, and what people answered."""

    tokens: np.ndarray[Any, Any]
    starts: np.ndarray[Any, Any]
    ends: np.ndarray[Any, Any]
    target: int
    context: str
    answers: tuple[str, ...]


class QuestionTasks(Episodes):
    """Meta-batches of articles; `question_tasks` makes them.

    `left_out` counts the questions whose answer the cut to `length` tokens lost; `articles` has the titles.
    """

    def __init__(
        self,
        name: str,
        questions: dict[str, list[Question]],
        *,
        shots: int,
        queries: int,
        left_out: int,
        length: int,
        **common: Any,
    ) -> None:
        super().__init__(rank=0, world_size=1, **common)
        self.name, self.left_out, self.length = name, left_out, length
        self.shots, self.queries = shots, queries
        self._questions = {title: found for title, found in questions.items() if len(found) >= shots + queries}
        if not self._questions:
            most = max(map(len, questions.values()), default=0)
            raise ValueError(
                f"shots + queries must be at most {most}, the questions of the largest article of {name}, got "
                f"{shots} + {queries}"
            )
        self.articles = tuple(self._questions)

    def queries_of(self, number: int) -> list[list[Question]]:
        """The query questions of each task of meta-batch `number`."""
        number = number % self.batches if self.fixed and self.batches is not None else number
        return [drawn[self.shots :] for drawn in self._drawn(number)]

    def decode(self, logits: Tensor, number: int) -> list[list[str]]:
        """What a model answers to the query questions of meta-batch `number`.

        Args:
            logits: `[T, Q, L, 2]` scores of first and last token; the first token of all says that there is no answer.
            number: of the meta-batch.

        Returns:
            A text for each question of each task; "" where there is no answer.
        """
        return [
            [_answer(scores, question) for scores, question in zip(task, asked, strict=True)]
            for task, asked in zip(logits.detach().float().cpu(), self.queries_of(number), strict=True)
        ]

    def score(self, logits: Tensor, number: int) -> AnswerScores:
        """Exact match and F1 over all query questions of meta-batch `number`.

        Args:
            logits: as in `decode`.
            number: likewise.
        """
        answers = [question.answers for asked in self.queries_of(number) for question in asked]
        return answer_scores([text for task in self.decode(logits, number) for text in task], answers)

    def _identity(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "articles": f"{zlib.crc32(chr(0).join(self.articles).encode()):08x}",
            "questions": sum(map(len, self._questions.values())),
            "length": self.length,
            "shots": self.shots,
            "queries": self.queries,
        }

    def _stream(self, first: int, stop: int | None, ahead: bool = True) -> Generator[TaskBatch, None, None]:
        while stop is None or first < stop:
            yield _batch(list(self._drawn(first)), self.shots).to(self.device)
            first += 1

    def _drawn(self, number: int) -> Iterator[list[Question]]:
        for key in task_keys(self.seed, number * self.tasks, self.tasks):
            random = np.random.default_rng(int(key))
            found = self._questions[self.articles[random.integers(len(self.articles))]]
            yield [found[i] for i in random.choice(len(found), self.shots + self.queries, replace=False)]


def question_tasks(
    name: str,
    tokenizer: Any,
    *,
    split: str = "train",
    shots: int = 16,
    queries: int = 16,
    tasks: int = 4,
    length: int = 384,
    seed: int = 0,
    batches: int | None = None,
    fixed: bool | None = None,
    path: str | PathLike[str] | None = None,
    device: torch.device | str | None = None,
) -> QuestionTasks:
    """Meta-batches whose tasks are articles: answers in the article's paragraphs, from a few of its questions.

    Inputs are the tokens of question and paragraph, `[T, N, length]`; a target is `start * length + end` of the tokens
    of the answer, and 0 (the first token) where there is none. Long paragraphs are cut at their end; questions that
    lose their answer by that are left out, and `left_out` counts them.

    Args:
        name: a data set in SQuAD's columns, such as "squad_v2"; `load` says where it is looked for.
        tokenizer: a fast one of transformers.
        split: of its rows, such as "train" or "validation".
        shots: questions to adapt on.
        queries: questions to be judged on.
        tasks: articles of a meta-batch.
        length: tokens of question and paragraph together.
        seed: of everything.
        batches: meta-batches per epoch; None: no end.
        fixed: every epoch has the same meta-batches; default True for other splits than "train", where `batches` is
            given.
        path: a folder of the data, as in `load`.
        device: where the meta-batches go.

    Returns:
        Episodes for `MetaFineTuner(..., loss="span")` on a backbone with `pool=None`; `score` counts as SQuAD does.

    Raises:
        DatasetNotFoundError: (a FileNotFoundError) no place has the data.
        TypeError: a tokenizer that does not tell where its tokens are in the text.
        ValueError: columns that are missing, or no article with enough questions.

    Source:
        P. Rajpurkar et al., Know What You Don't Know: Unanswerable Questions for SQuAD, ACL 2018.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(
            f"tokenizer must be a fast one of transformers, got {type(tokenizer).__name__}; "
            "AutoTokenizer.from_pretrained gives one"
        )
    shots, queries = integer("shots", shots, minimum=1), integer("queries", queries, minimum=1)
    length = integer("length", length, minimum=4)
    rows = load(name, split, path)
    missing = {"title", "context", "question", "answers"} - {*rows.column_names}
    if missing:
        raise ValueError(f"{name} must have SQuAD's columns, {sorted(missing)} are missing from {rows.column_names}")
    found, left_out = _read(rows, tokenizer, length)
    return QuestionTasks(
        f"{name} ({split})", found, shots=shots, queries=queries, left_out=left_out, length=length, tasks=tasks,
        seed=seed, batches=batches, device=device,
        fixed=(split != "train" and batches is not None) if fixed is None else fixed,
    )  # fmt: skip


def _read(rows: Any, tokenizer: Any, length: int) -> tuple[dict[str, list[Question]], int]:
    titles, contexts, texts, answers = (rows[column][:] for column in ("title", "context", "question", "answers"))
    coded = tokenizer(
        [text.strip() for text in texts], contexts, truncation="only_second", padding="max_length", max_length=length,
        return_offsets_mapping=True,
    )  # fmt: skip
    found: dict[str, list[Question]] = {}
    left_out = 0
    for index, (title, context, answer) in enumerate(zip(titles, contexts, answers, strict=True)):
        inside = np.array([part == 1 for part in coded.sequence_ids(index)])
        places = np.array(coded["offset_mapping"][index], dtype=np.int64)
        starts, ends = (np.where(inside, places[:, side], -1) for side in (0, 1))
        target = _target(starts, ends, answer, length)
        if target is None:
            left_out += 1
            continue
        tokens = np.array(coded["input_ids"][index], dtype=np.int64)
        found.setdefault(title, []).append(Question(tokens, starts, ends, target, context, tuple(answer["text"])))
    return found, left_out


def _target(
    starts: np.ndarray[Any, Any], ends: np.ndarray[Any, Any], answer: dict[str, list[Any]], length: int
) -> int | None:
    """`start * length + end` of the first answer; 0: there is none; None: the cut lost it."""
    if not answer["text"]:
        return 0
    begin = int(answer["answer_start"][0])
    stop = begin + len(answer["text"][0])
    over = np.flatnonzero((starts >= 0) & (starts < stop) & (ends > begin))
    if not len(over) or ends[over[-1]] < stop:
        return None
    return int(over[0]) * length + int(over[-1])


def _batch(drawn: list[list[Question]], shots: int) -> TaskBatch:
    x = torch.from_numpy(np.stack([[question.tokens for question in task] for task in drawn]))
    y = torch.tensor([[question.target for question in task] for task in drawn])
    return TaskBatch(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])


def _answer(scores: Tensor, question: Question) -> str:
    """The best span of the context, or "" where the first token scores as much."""
    inside = torch.from_numpy(question.starts >= 0)
    place = torch.arange(len(scores))
    apart = place[None] - place[:, None]
    allowed = (apart >= 0) & (apart < LONGEST) & inside[:, None] & inside[None]
    spans = (scores[:, :1] + scores[:, 1]).masked_fill(~allowed, -torch.inf)
    best = int(spans.argmax())
    start, end = divmod(best, len(scores))
    if not spans.flatten()[best] > scores[0].sum():
        return ""
    return question.context[question.starts[start] : question.ends[end]]
