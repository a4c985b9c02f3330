"""Taggers made of others: types added to a head whose other types stay as they are, and types taken away.

Only heads with a word encoder: there each group of types is read by a layer of its own.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from biogpt.checkpoint.pretrained import BioGptForTokenClassification as Tagger
from biogpt.model.config import BioGptConfig


def labels_with(config: BioGptConfig, types: Sequence[str]) -> tuple[str, ...]:
    """The labels of a head, and after them those of the types that it does not have.

    Raises:
        ValueError: the head has no word encoder; or one of the types is read together with others that are
            not among them, and cannot be learned without them.
    """
    if not config.word_encoder_size:
        raise ValueError(
            "the head labels tokens without a word encoder, so no types can be added beside its own; train a "
            "new one (leave --extend out)"
        )
    for group in config.types_by_reader:
        if group & set(types) and group - set(types):
            raise ValueError(
                f"{', '.join(sorted(group & set(types)))}: read by one layer with "
                f"{', '.join(sorted(group - set(types)))}; give texts in which all of them are annotated"
            )
    known = {label.partition("-")[2] for label in config.labels}
    return (*config.labels, *(f"{prefix}-{kind}" for kind in types if kind not in known for prefix in "BI"))


def with_types(head: Tagger, types: Sequence[str]) -> Tagger:
    """A tagger that also finds these types, by one more layer, which begins with what is known of them.

    Errors are those of ``labels_with``.
    """
    groups = [tuple(sorted(group)) for group in head.config.types_by_reader if not group & set(types)]
    return _with(head, labels_with(head.config, types), (*groups, tuple(types)))


def without_types(head: Tagger, types: Collection[str]) -> Tagger:
    """A tagger that does not find these types; what else it finds, they do not compete with any more."""
    labels = [label for label in head.config.labels if label.partition("-")[2] not in types]
    groups = [tuple(sorted(group - set(types))) for group in head.config.types_by_reader]
    return _with(head, labels, [group for group in groups if group])


def _with(head: Tagger, labels: Sequence[str], groups: Sequence[tuple[str, ...]]) -> Tagger:
    config = replace(head.config, id2label=dict(enumerate(labels)), word_encoder_groups=tuple(groups))
    made = Tagger(config)
    made.biogpt, made.base = head.biogpt, head.base
    both = [label for label in head.config.labels if label in labels]
    source, target = ([side.labels.index(label) for label in both] for side in (head.config, config))
    old, new = head.words, made.words
    assert old is not None
    assert new is not None
    with torch.no_grad():
        new.forms.load_state_dict(old.forms.state_dict())
        new.norm.load_state_dict(old.norm.state_dict())
        for group, reader in zip(new.groups, new.readers, strict=True):
            for known, before in zip(old.groups, old.readers, strict=True):
                if group & known:
                    reader.load_state_dict(before.state_dict())
        made.classifier.weight[target] = head.classifier.weight[source]
        made.classifier.bias[target] = head.classifier.bias[source]
        if made.chain is not None and head.chain is not None:
            # The last row is the start of a row of words, the last column its end.
            rows, columns = (torch.tensor([*side, -1]) for side in (source, target))
            made.chain.transitions[columns[:, None], columns] = head.chain.transitions[rows[:, None], rows]
    return made.to(head.device).train(head.training)


class Learned:
    """Some types of a tagger that learn while all else of it stays as it is, to the bit."""

    def __init__(self, model: Tagger, types: Collection[str]) -> None:
        words = model.words
        assert words is not None
        self._still: list[nn.Module] = [model.biogpt, words.forms, words.norm]
        learning: list[nn.Module] = [model.classifier]
        for group, reader in zip(words.groups, words.readers, strict=True):
            (learning if group & set(types) else self._still).append(reader)
        if model.chain is not None:
            learning.append(model.chain)
        for module in self._still:
            module.requires_grad_(False)
        of_others = torch.tensor([label.partition("-")[2] not in types for label in model.config.labels])
        parts: list[tuple[Tensor, Tensor]] = [
            (model.classifier.weight, of_others[:, None]),
            (model.classifier.bias, of_others),
        ]
        if model.chain is not None:
            either = torch.cat([of_others, torch.ones(1, dtype=torch.bool)])
            parts.append((model.chain.transitions, either & either[:, None]))
        self._parts = [(part, is_still.to(part.device), part.detach().clone()) for part, is_still in parts]

    def train(self) -> None:
        """Let nothing that stays as it is drop out, in a model that is in training mode."""
        for module in self._still:
            module.eval()

    @torch.no_grad()
    def restore(self) -> None:
        """Put back, after a step, what shares a tensor with what learns."""
        for part, is_still, before in self._parts:
            part.copy_(torch.where(is_still, before, part))
