"""What heads read of the decoder's states: words and sentences both ways, and tokens that labels attend to.

B batch, T positions, D width; R reads, W words of all rows, N labels. None of this is in the reference.
"""

import math
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biogpt.model.config import BioGptConfig


def dropout_of(config: BioGptConfig) -> float:
    """Of what stands above the decoder."""
    dropout = config.classifier_dropout
    return config.hidden_dropout_prob if dropout is None else dropout


def pooled(hidden: Tensor, spans: Sequence[tuple[int, int, int]], pooling: str) -> Tensor:
    """What is read of a batch: the state of a token, or the mean of those of a text or sentence.

    Args:
        hidden: [B, T, D] of the decoder.
        spans: (row, first token, last token) of R reads.
        pooling: as in ``BioGptConfig``.

    Returns:
        [R, D]: for ``mean``, float32, each token normalised by itself first; else the state of the last token
        as it is.
    """
    if pooling != "mean":
        rows, _, last = torch.tensor(spans, device=hidden.device).T
        return hidden[rows, last]
    stretches = (hidden[row, first : last + 1].float() for row, first, last in spans)
    return torch.stack([F.layer_norm(tokens, tokens.shape[-1:]).mean(dim=0) for tokens in stretches])


class Reader(nn.Module):
    """A bidirectional LSTM over the words, or the sentences, of several rows.

    Args:
        width: D of what is read.
        size: H, each way.
        dropout: before each of its layers, and after the last.
    """

    def __init__(self, width: int, size: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.inner = nn.Linear(width, 2 * size)
        self.ahead = nn.LSTM(2 * size, size, batch_first=True)
        self.back = nn.LSTM(2 * size, size, batch_first=True)

    def forward(self, read: Tensor, counts: list[int]) -> Tensor:
        """[W, D], row after row, and how many each row has, to [W, 2H]; a row does not depend on others."""
        rows = self.dropout(F.gelu(self.inner(self.dropout(read)))).split(counts)
        # Both ways start at a row's own end, so padding never comes before what is read.
        ahead, _ = self.ahead(nn.utils.rnn.pad_sequence(rows, batch_first=True))
        back, _ = self.back(nn.utils.rnn.pad_sequence([row.flip(0) for row in rows], batch_first=True))
        joined = [
            torch.cat([ahead[row, :count], back[row, :count].flip(0)], dim=-1)
            for row, count in enumerate(counts)
        ]
        return self.dropout(torch.cat(joined))


class WordEncoder(nn.Module):
    """Reads the words of a passage both ways, above a decoder that only looks back.

    Bidirectional LSTMs over each word's hidden state and the look of it (its letters, beginning, end and
    shape, hashed into one table), as in the taggers of Lample et al. 2016 (arXiv:1603.01360) and the language
    models below them of Peters et al. 2017 (arXiv:1705.00108); hashed forms are those of spaCy's
    ``MultiHashEmbed``. Each group of types has a reader of its own: corpora that annotate other types, by
    other rules, do not disturb it.

    Args:
        config: with ``word_encoder_size`` H, ``word_encoder_groups``, ``word_form_rows``, ``word_form_size``.

    Raises:
        ValueError: the labels are not ``O`` and others with a prefix.
    """

    FORMS = 5  # hashed looks of a word, see ``biogpt.tasks.words.word_forms``

    def __init__(self, config: BioGptConfig) -> None:
        super().__init__()
        self.groups = config.types_by_reader
        # Drawn below, and not on the meta device: that would import seconds of software, as in
        # ``BioGptModel``.
        forms = torch.empty(config.word_form_rows, config.word_form_size)
        self.forms = nn.Embedding.from_pretrained(forms, freeze=False)
        self.norm = nn.LayerNorm(config.hidden_size)
        width = config.hidden_size + self.FORMS * config.word_form_size
        self.readers = nn.ModuleList(
            Reader(width, config.word_encoder_size, dropout_of(config)) for _ in self.groups
        )
        if not forms.is_meta:
            nn.init.normal_(self.forms.weight, std=0.1)
        kinds = [label.partition("-")[2] for label in config.labels]
        if [label for label, kind in zip(config.labels, kinds, strict=True) if not kind] != ["O"]:
            raise ValueError(f"a word encoder scores O and labels such as B-Gene; got {config.labels}")
        self.outside = config.labels.index("O")
        self.labels = [[i for i, kind in enumerate(kinds) if kind in group] for group in self.groups]

    def forward(
        self,
        hidden: Tensor,
        forms: Tensor,
        counts: list[int],
        classifier: nn.Linear,
        types: Sequence[Collection[str]] | None = None,
    ) -> Tensor:
        """Score the labels of the words of several rows, row after row.

        Args:
            hidden: [W, D] where each word is read.
            forms: [W, FORMS] rows of the table.
            counts: words of each row; they sum to W.
            classifier: from 2H to N; a label is scored on what the reader of its type gives.
            types: of each row, what is asked for; a reader of none of them leaves the row out. None asks for
                all.

        Returns:
            [W, N] log-odds against ``O``, which is 0 itself; -inf for labels left out. A row does not depend
            on the others.
        """
        words = torch.cat([self.norm(hidden), self.forms(forms).flatten(1)], dim=-1)
        logits = words.new_full((len(words), classifier.out_features), -math.inf)
        logits[:, self.outside] = 0
        first = torch.tensor([0, *counts]).cumsum(0).tolist()
        for group, reader, labels in zip(self.groups, self.readers, self.labels, strict=True):
            rows = [row for row in range(len(counts)) if types is None or not group.isdisjoint(types[row])]
            if not rows:
                continue
            index = torch.cat([torch.arange(first[row], first[row + 1]) for row in rows]).to(words.device)
            read = reader(words[index], [counts[row] for row in rows])
            scores = F.linear(read, classifier.weight[labels], classifier.bias[labels])
            logits[index[:, None], torch.tensor(labels, device=words.device)] = scores
        return logits


class LabelAttention(nn.Module):
    """A vector of a text for each label: the mean of its tokens, weighted by what the label looks for.

    As in Mullenbach et al. 2018 (arXiv:1802.05695), with a layer on each token in place of their convolution.

    Args:
        config: with ``pooling_size`` P.
    """

    def __init__(self, config: BioGptConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout_of(config))
        self.inner = nn.Linear(config.hidden_size, config.pooling_size)
        self.query = nn.Linear(config.pooling_size, config.num_labels, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.num_labels))

    def forward(self, tokens: Tensor, counts: list[int], weight: Tensor) -> Tensor:
        """[W, D] tokens, text after text, and how many each has, to [B, N] scores by ``weight`` [N, P]."""
        inner = self.dropout(F.gelu(self.inner(self.dropout(tokens))))
        vectors = torch.stack([self.query(text).softmax(dim=0).T @ text for text in inner.split(counts)])
        return (vectors * weight).sum(dim=-1) + self.bias
