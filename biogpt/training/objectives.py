"""What a head can be fine-tuned for: entities, labels of texts, roles of the sentences of an abstract."""

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from biogpt.checkpoint.pretrained import (
    BioGptForSequenceClassification,
    BioGptForTokenClassification,
    BioGptTokenizer,
)
from biogpt.model.config import BioGptConfig
from biogpt.tasks.classification import TextClassifier, sentence_rows, text_window
from biogpt.tasks.entities import EntityRecognizer, windows_of
from biogpt.tasks.tags import OUTSIDE
from biogpt.tasks.words import Words, words_of
from biogpt.text.documents import is_pubtator, read_pubtator
from biogpt.text.files import read_text
from biogpt.text.sentences import sentence_spans
from biogpt.training.extending import labels_with
from biogpt.training.finetune import Evaluation, Example, Objective
from biogpt.training.labelled import (
    GoldSpan,
    LabelledSentences,
    LabelledText,
    TaggedText,
    read_conll,
    read_tagged_jsonl,
)
from biogpt.training.metrics import (
    ALL,
    NONE,
    Scores,
    calibration_error,
    classification_scores,
    confusion,
    entity_confusion,
    entity_hits,
    entity_scores,
)

# Share of the passages that are single sentences; the others fill the window. In a CoNLL file, where texts
# are sentences, that is a window for every six sentences alone.
_ALONE, _ALONE_OF_SENTENCES = 0.3, 0.85
_WORD_ENCODER_DROPOUT = 0.4
_WORD_FORM_ROWS = 16384
_NOT_AUXILIARY = 0.5  # share of the passages in which words of auxiliary types are O, as they will be
_ALL_TYPES = 0.15  # share of the passages on which every reader learns, so that two do not claim one word

Renderings = tuple[TaggedText, ...]  # one sentence, written in one or two ways


@dataclass(frozen=True)
class EntityCorpus:
    """A corpus and the types that it annotates, under their names in the head.

    Attributes:
        texts: what the scores are computed on: whole PubTator abstracts, or CoNLL sentences, spaces between
            tokens.
        documents: the sentences to train on. A CoNLL sentence is written with spaces and as prose is.
        share: of its passages, drawn anew for each epoch, that an epoch reads.
    """

    name: str
    types: tuple[str, ...]
    texts: list[TaggedText]
    documents: list[list[Renderings]]
    share: float = 1.0

    @classmethod
    def read(
        cls,
        path: Path,
        renames: Mapping[str, str] | None = None,
        share: float = 1.0,
        discontinuous: bool = True,
    ) -> "EntityCorpus":
        """Read a CoNLL, JSON Lines (``.jsonl``) or PubTator file; ``is_pubtator`` knows the last.

        Args:
            share: more than 0, up to 1; as the attribute.
            renames: name in the file: name in the head. Types that are not in it count as not annotated.
                None keeps all types under their names.
            discontinuous: as of ``read_pubtator``.

        Raises:
            ValueError: the file is malformed, or has no entity of a type named; the share is out of range.
        """
        if not 0 < share <= 1:
            raise ValueError(f"the share of {path} is {share}; expected more than 0, up to 1")
        documents: list[list[Renderings]]
        if is_pubtator(path, read_text(path)):
            texts = [
                TaggedText(
                    document.text, tuple(GoldSpan(start, end, kind) for start, end, _, kind in entities)
                )
                for document, entities in read_pubtator(path, discontinuous)
            ]
            texts = [_renamed(text, renames) for text in texts]
            documents = [[(part,) for part in _sentences(text)] for text in texts]
        elif path.suffix.lower() == ".jsonl":
            texts = [_renamed(text, renames) for text in read_tagged_jsonl(path)]
            documents = [[(part,) for part in _sentences(text)] for text in texts]
        else:
            sentences = read_conll(path)
            texts = [_renamed(sentence.as_text(), renames) for sentence in sentences]
            prose = [_renamed(sentence.as_text(natural=True), renames) for sentence in sentences]
            documents = [list(zip(texts, prose, strict=True))]
        found = {span.label for text in texts for span in text.spans}
        types = found if renames is None else set(renames.values())
        if not types or types - found:
            raise ValueError(
                f"{path} has no entity of the types {sorted(types - found)}; it has {sorted(found)}"
            )
        return cls(str(Path(path.parent.name) / path.stem), tuple(sorted(types)), texts, documents, share)


class EntityObjective(Objective):
    """Entities, from corpora that may each annotate only some of the types.

    Args:
        train: corpora to learn from; an ``O`` in one means "none of the types that this corpus annotates".
        dev: corpora to score on, each asked for the types that it annotates; its score is the mean F1.
        settings: of the config: ``passage_copies``, ``bidirectional_layers``, ``word_encoder_size``,
            ``read_layers``. Not for ``extends``, which has its own.
        extends: a tagger with a word encoder, to which the types are added; its own stay as they are.
        auxiliary: types that are learned because to tell them from the others helps, and are not kept.
        alone: share of the passages that are single sentences, the others fill the window; when None, 0.3, or
            in files of sentences 0.85.

    Raises:
        ValueError: a type is not annotated in ``train``; nothing would be kept; or as of ``labels_with``.
    """

    head = BioGptForTokenClassification
    multi_label = False

    def __init__(
        self,
        train: Sequence[EntityCorpus],
        dev: Sequence[EntityCorpus],
        settings: Mapping[str, Any],
        extends: BioGptForTokenClassification | None = None,
        auxiliary: Sequence[str] = (),
        alone: float | None = None,
    ) -> None:
        self.train, self.dev, self.extends, self.auxiliary = train, dev, extends, tuple(auxiliary)
        self._alone = alone
        self._encoded: list[list[list[list[tuple[Words, np.ndarray]]]]] = []
        self.learned = tuple(dict.fromkeys(kind for corpus in train for kind in corpus.types))
        _check_known(set(auxiliary), self.learned)
        kept = [kind for kind in self.learned if kind not in auxiliary]
        if not kept:
            raise ValueError(f"all types are auxiliary, {', '.join(auxiliary)}; name those to keep, too")
        _check_known({kind for corpus in dev for kind in corpus.types}, kept)
        if extends is not None:
            self.labels = labels_with(extends.config, self.learned)
            self.types = tuple(dict.fromkeys(label[2:] for label in self.labels if label != OUTSIDE))
            self.settings = {}
            return
        self.types = self.learned
        self.labels = (OUTSIDE, *(f"{prefix}-{kind}" for kind in self.types for prefix in "BI"))
        self.settings = {"label_piece": "last", **settings}
        if settings.get("word_encoder_size"):
            self.settings["classifier_dropout"] = _WORD_ENCODER_DROPOUT
            self.settings |= {"label_chain": True, "word_form_rows": _WORD_FORM_ROWS}
            self.settings["word_encoder_groups"] = _groups([corpus.types for corpus in train])

    def examples(
        self, tokenizer: BioGptTokenizer, config: BioGptConfig, random: np.random.Generator
    ) -> list[Example]:
        """Passages of all corpora: single sentences, and as many as fit."""
        if not self._encoded:
            self._encoded = [
                [
                    [[self._encode(tokenizer, text) for text in renderings] for renderings in document]
                    for document in corpus.documents
                ]
                for corpus in self.train
            ]
        room = config.max_position_embeddings // config.passage_copies - 1
        left_out = [i for i, label in enumerate(self.labels) if label.partition("-")[2] in self.auxiliary]
        examples = []
        for corpus, documents in zip(self.train, self._encoded, strict=True):
            right = self._right_labels(corpus.types)
            without = right.copy()
            without[left_out] = right[0]
            for document in documents:
                alone = self._alone
                if alone is None:
                    alone = _ALONE if len(documents) > 1 else _ALONE_OF_SENTENCES
                for passage in _passages(document, room, alone, random):
                    if random.random() >= corpus.share:
                        continue
                    pieces = [word for words, _ in passage for word in words.pieces]
                    texts = [word for words, _ in passage for word in words.texts]
                    labels = np.concatenate([labels for _, labels in passage])
                    for window in windows_of(pieces, config):
                        of_window = labels[window.stretch]
                        asked = self.types if random.random() < _ALL_TYPES else corpus.types
                        said = texts[window.stretch]
                        if left_out and (asked is self.types or random.random() < _NOT_AUXILIARY):
                            targets, out = without[of_window], left_out
                        else:
                            targets, out = right[of_window], []
                        examples.append(Example(window.ids, window.reads, targets, said, asked, out))
        return examples

    def evaluate(self, model: BioGptForTokenClassification, tokenizer: BioGptTokenizer) -> Evaluation | None:
        """Strict entity F1 on each dev corpus."""
        if not self.dev:
            return None
        recognizer = EntityRecognizer(model, tokenizer)
        metrics: dict[str, Any] = {}
        best = []
        matrix = np.zeros((len(self.types) + 1,) * 2, dtype=int)
        for corpus in self.dev:
            gold = [text.spans for text in corpus.texts]
            known = recognizer.batch([text.text for text in corpus.texts], types=corpus.types)
            scores = entity_scores(gold, known)
            best.append(scores[ALL].f1)
            error = calibration_error(*entity_hits(gold, known))
            metrics[_unused(corpus.name, metrics)] = {"calibration_error": round(error, 4), **_table(scores)}
            matrix += entity_confusion(gold, known, self.types)
        score = float(np.mean(best))
        return Evaluation(score, metrics, (matrix, [*self.types, NONE]))

    def _encode(self, tokenizer: BioGptTokenizer, text: TaggedText) -> tuple[Words, np.ndarray]:
        words = words_of(tokenizer, text.text)
        labels = np.zeros(len(words.spans), dtype=int)
        for span in text.spans:
            prefix = "B"
            for index, (start, end) in enumerate(words.spans):
                if start < span.end and end > span.start:
                    labels[index] = self.labels.index(f"{prefix}-{span.label}")
                    prefix = "I"
        return words, labels

    def _right_labels(self, annotated: Sequence[str]) -> np.ndarray:
        """[N, N]: which labels would be right where a corpus of these types has a label."""
        right = np.eye(len(self.labels), dtype=np.float32)
        right[0] = [label.partition("-")[2] not in annotated for label in self.labels]
        return right


def _unused(name: str, used: Collection[str]) -> str:
    """A name, numbered if corpora before had the same."""
    again = 1
    numbered = name
    while numbered in used:
        again += 1
        numbered = f"{name}-{again}"
    return numbered


def _groups(annotated: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Types that some corpus annotates together, also by way of others, in groups; in the order given."""
    groups: list[tuple[str, ...]] = []
    for types in annotated:
        apart = [group for group in groups if not set(group) & set(types)]
        joined = [kind for group in groups if group not in apart for kind in group]
        groups = [*apart, tuple(dict.fromkeys([*joined, *types]))]
    return tuple(groups)


def _renamed(text: TaggedText, renames: Mapping[str, str] | None) -> TaggedText:
    if renames is None:
        return text
    spans = (GoldSpan(s.start, s.end, renames[s.label]) for s in text.spans if s.label in renames)
    return TaggedText(text.text, tuple(spans))


def _sentences(text: TaggedText) -> Iterator[TaggedText]:
    """The sentences of a text; an entity that a wrong boundary cuts is left whole by joining them."""
    ends = [end for _, end in sentence_spans(text.text)]
    if ends:
        ends[-1] = len(text.text)  # white space there may belong to an entity, which would lose its sentence
    start = 0
    for end in ends:
        if any(span.start < end < span.end for span in text.spans):
            continue
        inside = (s for s in text.spans if start <= s.start and s.end <= end)
        yield TaggedText(
            text.text[start:end], tuple(GoldSpan(s.start - start, s.end - start, s.label) for s in inside)
        )
        start = end


def _passages(
    document: list[list[tuple[Words, np.ndarray]]], room: int, alone_share: float, random: np.random.Generator
) -> Iterator[list[tuple[Words, np.ndarray]]]:
    """Runs of sentences, each written in one of its ways; ``alone_share`` of them are single sentences."""
    passage: list[tuple[Words, np.ndarray]] = []
    filled = 0
    alone = random.random() < alone_share
    way = random.random()
    for renderings in document:
        sentence = renderings[int(way * len(renderings))]
        size = sum(len(word) for word in sentence[0].pieces)
        if passage and (alone or filled + size > room):
            yield passage
            passage, filled = [], 0
            alone = random.random() < alone_share
            way = random.random()
            sentence = renderings[int(way * len(renderings))]
        passage.append(sentence)
        filled += size
    if passage:
        yield passage


class TextObjective(Objective):
    """Labels of whole texts: one each, or several.

    Args:
        train, dev: the texts; a text too long for the model is learned from by its beginning.
        multi_label: whether a text may have several labels, or none.
        settings: of the config: ``pooling``, ``pooling_size``, ``read_layers``.

    Raises:
        ValueError: without ``multi_label``, a text has not just one label; or there is only one label.
    """

    head = BioGptForSequenceClassification

    def __init__(
        self,
        train: Sequence[LabelledText],
        dev: Sequence[LabelledText],
        multi_label: bool,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        odd = [text for text in (*train, *dev) if len(text.labels) != 1]
        if odd and not multi_label:
            raise ValueError(
                f"{len(odd)} texts have no label or several, such as {odd[0].text[:40]!r} with "
                f"{odd[0].labels}; "
                "expected one each, or say that there may be several (--multi-label)"
            )
        self.train, self.dev, self.multi_label = train, dev, multi_label
        self.labels = tuple(sorted({label for text in train for label in text.labels}))
        if len(self.labels) < 2:
            raise ValueError(f"the training texts have the labels {list(self.labels)}; expected at least two")
        _check_known({label for text in dev for label in text.labels}, self.labels)
        self.settings = _head_settings(settings)

    def examples(
        self, tokenizer: BioGptTokenizer, config: BioGptConfig, random: np.random.Generator
    ) -> list[Example]:
        """One row a text."""
        examples = []
        for text in self.train:
            ids = tokenizer.encode(text.text).ids[: config.max_position_embeddings]
            window = text_window(ids, config.pooling)
            target = np.array([[label in text.labels for label in self.labels]], dtype=np.float32)
            examples.append(Example(window.ids, window.reads, target, begins=window.begins))
        return examples

    def evaluate(
        self, model: BioGptForSequenceClassification, tokenizer: BioGptTokenizer
    ) -> Evaluation | None:
        """Micro-F1 at 0.5 for several labels a text, else accuracy."""
        if not self.dev:
            return None
        return _classification(*self.probabilities(model, tokenizer), self.labels, self.multi_label)

    def probabilities(
        self, model: BioGptForSequenceClassification, tokenizer: BioGptTokenizer
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the head says of the dev split, and what is right, 0 or 1: [texts, N] each."""
        results = TextClassifier(model, tokenizer).batch([text.text for text in self.dev])
        by_label = [{score.label: score.score for score in result.scores} for result in results]
        found = [[scores[label] for label in self.labels] for scores in by_label]
        right = [[label in text.labels for label in self.labels] for text in self.dev]
        return np.array(found), np.array(right, dtype=float)


class SentenceObjective(Objective):
    """The role of each sentence of an abstract, read after the sentences before it.

    Args:
        train, dev: abstracts, sentence by sentence.
        settings: of the config: ``pooling``, ``sentence_encoder_size``, ``read_layers``. With a sentence
            encoder, which also reads the sentences after it, roles are learned as a chain.
    """

    head = BioGptForSequenceClassification
    multi_label = False

    def __init__(
        self,
        train: Sequence[LabelledSentences],
        dev: Sequence[LabelledSentences],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.train, self.dev = train, dev
        self.labels = tuple(dict.fromkeys(label for abstract in train for label in abstract.labels))
        _check_known({label for abstract in dev for label in abstract.labels}, self.labels)
        self.settings = _head_settings(settings)

    def examples(
        self, tokenizer: BioGptTokenizer, config: BioGptConfig, random: np.random.Generator
    ) -> list[Example]:
        """Rows of whole sentences, each read at its last piece; a long abstract gives several rows."""
        right = np.eye(len(self.labels), dtype=np.float32)
        room = config.max_position_embeddings - 1
        examples = []
        for abstract in self.train:
            pieces = [tokenizer.encode(text, special_tokens=False).ids[-room:] for text in abstract.sentences]
            labels = iter(abstract.labels)
            for window in sentence_rows(pieces, room, config.eos_token_id):
                targets = np.stack([right[self.labels.index(next(labels))] for _ in window.reads])
                examples.append(Example(window.ids, window.reads, targets, begins=window.begins))
        return examples

    def evaluate(
        self, model: BioGptForSequenceClassification, tokenizer: BioGptTokenizer
    ) -> Evaluation | None:
        """Accuracy over all sentences of the dev split."""
        if not self.dev:
            return None
        return _classification(*self.probabilities(model, tokenizer), self.labels, False)

    def probabilities(
        self, model: BioGptForSequenceClassification, tokenizer: BioGptTokenizer
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the head says of the dev split, and what is right, 0 or 1: [sentences, N] each."""
        classifier = TextClassifier(model, tokenizer)
        order = [classifier.labels.index(label) for label in self.labels]
        found, right = [], []
        for abstract in self.dev:
            ends = np.cumsum([len(sentence) + 1 for sentence in abstract.sentences])
            spans = [
                (int(end) - 1 - len(sentence), int(end) - 1)
                for end, sentence in zip(ends, abstract.sentences, strict=True)
            ]
            found.append(classifier.sentence_probabilities(" ".join(abstract.sentences), spans)[:, order])
            right += [[label == role for label in self.labels] for role in abstract.labels]
        return np.concatenate(found), np.array(right, dtype=float)


def _check_known(found: Set[str], known: Sequence[str]) -> None:
    """Refuse, before an epoch is trained, labels to score on that there is no training for."""
    if unknown := sorted(found - set(known)):
        raise ValueError(
            f"the texts to score on have {', '.join(unknown)}, and those to train on only "
            f"{', '.join(known)}; "
            "leave them out, or rename them"
        )


def _head_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those given; the sentences of an abstract that are read together are labelled as a chain."""
    chosen = dict(settings or {})
    return chosen | {"label_chain": True} if chosen.get("sentence_encoder_size") else chosen


def _classification(
    probabilities: np.ndarray, right: np.ndarray, labels: Sequence[str], multi_label: bool
) -> Evaluation:
    """Scores from [R, N] probabilities, and 1 for what is right."""
    chosen = probabilities >= 0.5 if multi_label else np.eye(len(labels))[probabilities.argmax(axis=1)]
    gold, found = (
        [{label for label, has in zip(labels, row, strict=True) if has} for row in rows]
        for rows in (right, chosen)
    )
    scores = classification_scores(gold, found)
    error = {"calibration_error": round(calibration_error(probabilities, right, multi_label), 4)}
    if multi_label:
        return Evaluation(scores[ALL].f1, error | _table(scores))
    true, guessed = ([label for single in sets for label in single] for sets in (gold, found))
    matrix = confusion(true, guessed, labels)
    accuracy = float(np.trace(matrix) / matrix.sum())
    metrics = {"accuracy": round(accuracy, 4), **error, **_table(scores)}
    return Evaluation(accuracy, metrics, (matrix, list(labels)))


def _table(scores: Mapping[str, Scores]) -> dict[str, Any]:
    return {label: of_label.to_dict() for label, of_label in scores.items()}
