"""Question answering: articles as tasks, spans that point at the answer, scores as SQuAD counts."""

import pytest
import torch

datasets = pytest.importorskip("datasets", reason="needs the hf extra")
transformers = pytest.importorskip("transformers", reason="needs the hf extra")

from metafast.adapt import MetaFineTuner, freeze, question_tasks  # noqa: E402
from metafast.data import load  # noqa: E402
from metafast.metrics import answer_scores  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer(request):
    """Words and signs of the questions themselves: [CLS] question [SEP] paragraph [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    request.getfixturevalue("data_folder")("squad_v2")
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(
        vocab_size=500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    made.train_from_iterator(load("squad_v2", "train")["context"][:200], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]", cls_token="[CLS]"
    )


@pytest.fixture(scope="module")
def questions(tokenizer):
    return question_tasks("squad_v2", tokenizer, split="validation", shots=3, queries=5, tasks=2, length=160, batches=2)


def right(batch):
    """Scores that are certain of the targets."""
    length = batch.query_x.shape[2]
    logits = torch.zeros(*batch.query_x.shape, 2)
    logits[..., 0].scatter_(2, (batch.query_y // length).unsqueeze(2), 9.0)
    logits[..., 1].scatter_(2, (batch.query_y % length).unsqueeze(2), 9.0)
    return logits


def test_targets_point_at_the_answers(questions):
    assert len(questions.articles) == 5 and questions.left_out > 0
    answered = 0
    for number, batch in enumerate(questions):
        assert batch.support_x.shape == (2, 3, 160) and batch.query_y.shape == (2, 5)
        found = questions.decode(right(batch), number)
        for texts, asked in zip(found, questions.queries_of(number), strict=True):
            for text, question in zip(texts, asked, strict=True):
                assert (text == "") == (not question.answers)
                answered += bool(question.answers)
        assert questions.score(right(batch), number).f1 > 0.95
        assert questions.score(torch.zeros_like(right(batch)), number).exact < 1
    assert answered


def test_the_same_tasks_every_time(questions):
    assert torch.equal(questions[1].query_x, list(questions)[1].query_x)
    assert not torch.equal(questions[0].query_x, questions[1].query_x)
    questions.load_state_dict(questions.state_dict())


def test_a_meta_network_takes_them(questions, tokenizer):
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=160, pad_token_id=0,
    )  # fmt: skip
    base = freeze(transformers.BertForQuestionAnswering(config), tokenizer=tokenizer)
    assert base.sequence and base.separator == 3
    meta = MetaFineTuner(base, adapt="lora:r=2", net="alfa", steps=1, loss="span")
    loss, metrics = meta(questions[0])
    loss.backward()
    assert metrics["logits"].shape == (2, 5, 160, 2)
    assert 0 <= questions.score(metrics["logits"], 0).f1 <= 1


def test_what_is_wrong_is_said(tokenizer, tmp_path):
    with pytest.raises(TypeError, match="fast one of transformers, got str"):
        question_tasks("squad_v2", "bert-base-uncased")
    with pytest.raises(ValueError, match=r"shots \+ queries must be at most \d+, the questions of the largest article"):
        question_tasks("squad_v2", tokenizer, split="validation", shots=400, queries=400, length=160)
    with pytest.raises(ValueError, match=r"\['answers', 'context', 'question', 'title'\] are missing"):
        question_tasks("imdb", tokenizer)


def test_scores_as_squad_counts():
    assert answer_scores(["The cat!", "a dog", ""], [["cat"], ["the big dog"], []]) == (2 / 3, pytest.approx(8 / 9), 3)
    assert answer_scores(["x", ""], [[], ["y"]])[:2] == (0, 0)
    with pytest.raises(ValueError, match="must be as many"):
        answer_scores([], [])
