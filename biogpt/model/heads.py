"""Task heads on the decoder, with their losses: causal language model, token and sequence classification.

Letters as in ``biogpt.model.decoder``: B batch, T positions, D width, V vocabulary; N labels, W words of all
rows.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biogpt.model.cache import KVCache
from biogpt.model.chain import LabelChain
from biogpt.model.config import BioGptConfig
from biogpt.model.decoder import BioGptModel, initialize


@dataclass
class HeadOutput:
    """What every head returns.

    Attributes:
        logits: [B, T, V] for the language model, [B, T, N] for tokens, [B, N] for sequences.
        loss: scalar, when labels were given.
        past_key_values, hidden_states, attentions: as in ``biogpt.model.decoder.ModelOutput``.
    """

    logits: Tensor
    loss: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Head(nn.Module):
    """A decoder, ``biogpt``, with one head above it; what the three heads share.

    ``biogpt.checkpoint`` gives each of them ``from_pretrained`` and ``save_pretrained``, under its public
    name.
    """

    biogpt: BioGptModel
    tied_weights: ClassVar[dict[str, str]] = {}  # parameter: the one it shares its tensor with
    layout: Literal["plain", "packed", "int8"] = "plain"  # of the weights, see ``biogpt.runners.packing``

    def __init__(self, config: BioGptConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.biogpt.embed_positions.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its hidden states."""
        return self.biogpt.embed_positions.weight.dtype

    @property
    def ties(self) -> dict[str, str]:
        """``tied_weights``, where the config ties any."""
        return self.tied_weights if self.config.tie_word_embeddings else {}

    def get_input_embeddings(self) -> nn.Embedding:
        return self.biogpt.get_input_embeddings()

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        self.biogpt.set_input_embeddings(embeddings)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let tied parameters be one, when the config says so."""
        for target, source in self.ties.items():
            self.get_submodule(target.rpartition(".")[0]).weight = self.get_parameter(source)


class LanguageModel(Head):
    """BioGPT that predicts the next token; the output projection shares the embedding's weight when tied."""

    tied_weights: ClassVar[dict[str, str]] = {"output_projection.weight": "biogpt.embed_tokens.weight"}

    def __init__(self, config: BioGptConfig) -> None:
        if config.bidirectional_layers:
            raise ValueError(
                f"config: bidirectional_layers is {config.bidirectional_layers}; a "
                "language model must not see the "
                "tokens it predicts: expected 0"
            )
        if config.read_layers:
            raise ValueError(
                f"config: read_layers is {config.read_layers}; a language model reads all layers: expected 0"
            )
        super().__init__(config)
        self.biogpt = BioGptModel(config)
        self.output_projection = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        initialize(self.output_projection, config)
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear:
        return self.output_projection

    def set_output_embeddings(self, projection: nn.Linear) -> None:
        """Replace the projection; when tied, the token embedding takes over its weight."""
        self.output_projection = projection
        if self.config.tie_word_embeddings:
            self.biogpt.embed_tokens.weight = projection.weight

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool = False,
        labels: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        logits_to_keep: int = 0,
    ) -> HeadOutput:
        """Score the next token at each position.

        Args:
            labels: [B, T] ids; the label at position t is predicted from position t - 1; -100 is not scored.
            logits_to_keep: project only the last so many positions; 0 means all.
            The others are those of ``BioGptModel.forward``.

        Returns:
            ``logits`` [B, T or logits_to_keep, V]; ``loss``: mean cross-entropy in nats.

        Raises:
            ValueError: as ``BioGptModel.forward``; or labels together with ``logits_to_keep``.
        """
        if labels is not None and logits_to_keep:
            raise ValueError("labels need the logits of all positions; leave logits_to_keep at 0")
        out = self.biogpt(
            input_ids,
            attention_mask,
            inputs_embeds,
            position_ids,
            head_mask,
            past_key_values,
            use_cache,
            output_attentions,
            output_hidden_states,
        )
        logits = self.output_projection(out.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return HeadOutput(logits, loss, out.past_key_values, out.hidden_states, out.attentions)


class WordReader(nn.Module):
    """A bidirectional LSTM over the words of several rows; see ``WordEncoder``."""

    def __init__(self, config: BioGptConfig) -> None:
        super().__init__()
        size = config.word_encoder_size
        self.dropout = nn.Dropout(_dropout(config))
        self.inner = nn.Linear(config.hidden_size + WordEncoder.FORMS * config.word_form_size, 2 * size)
        self.ahead = nn.LSTM(2 * size, size, batch_first=True)
        self.back = nn.LSTM(2 * size, size, batch_first=True)

    def forward(self, words: Tensor, counts: list[int]) -> Tensor:
        """[W, D + forms] and the words of each row, to [W, 2H]."""
        rows = self.dropout(F.gelu(self.inner(self.dropout(words)))).split(counts)
        # Both ways start at a row's own end, so padding never comes before a word.
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
        self.readers = nn.ModuleList(WordReader(config) for _ in self.groups)
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


def _dropout(config: BioGptConfig) -> float:
    dropout = config.classifier_dropout
    return config.hidden_dropout_prob if dropout is None else dropout


class TokenClassifier(Head):
    """BioGPT with dropout and a linear layer on every position; with ``word_encoder_size``, on every word."""

    def __init__(self, config: BioGptConfig) -> None:
        super().__init__(config)
        self.biogpt = BioGptModel(config)
        self.dropout = nn.Dropout(_dropout(config))
        self.words = WordEncoder(config) if config.word_encoder_size else None
        self.chain = LabelChain(config.num_labels) if config.label_chain else None
        self.classifier = nn.Linear(2 * config.word_encoder_size or config.hidden_size, config.num_labels)
        initialize(self.classifier, config)

    def read(
        self,
        hidden: Tensor,
        forms: Tensor | None,
        counts: list[int],
        types: Sequence[Collection[str]] | None = None,
    ) -> Tensor:
        """Score the labels of words, row after row.

        Args:
            hidden: [W, D] of the decoder where each word is read.
            forms: [W, 5] from ``biogpt.tasks.words.word_forms``.
            counts: words of each row; they sum to W.
            types: of each row, the types to score, None for all. Like ``forms``, for a word encoder only.

        Returns:
            [W, N]; with a word encoder, log-odds as in ``WordEncoder.forward``.

        Raises:
            ValueError: the model has a word encoder, and no forms were given.
        """
        if self.words is not None:
            if forms is None:
                raise ValueError("a word encoder reads the forms of the words; give those of words.forms_of")
            return self.words(hidden, forms, counts, self.classifier, types)
        return self.classifier(self.dropout(hidden))

    def log_probabilities(self, scores: Tensor, counts: list[int]) -> Tensor:
        """Log-probabilities of the labels of each word, [W, N] float32, from what ``read`` gave."""
        if self.chain is not None:
            return self.chain.log_marginals(scores, counts)
        return scores.float().log_softmax(dim=-1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool = False,
        labels: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> HeadOutput:
        """Score the labels of each token.

        Args:
            labels: [B, T] label ids; -100 and padding are not scored.
            The others are those of ``BioGptModel.forward``.

        Returns:
            ``logits`` [B, T, N]; ``loss``: mean cross-entropy in nats over scored tokens.

        Raises:
            ValueError: the model has a word encoder, which needs to know the words; or as
                ``BioGptModel.forward``.
        """
        if self.words is not None:
            raise ValueError(
                f"a model with word_encoder_size {self.config.word_encoder_size} labels words, not tokens; "
                "use EntityRecognizer, or read() on the hidden states of its decoder"
            )
        out = self.biogpt(
            input_ids,
            attention_mask,
            inputs_embeds,
            position_ids,
            head_mask,
            past_key_values,
            use_cache,
            output_attentions,
            output_hidden_states,
        )
        logits = self.classifier(self.dropout(out.last_hidden_state))
        loss = None
        if labels is not None:
            if attention_mask is not None:
                scored = attention_mask[:, -labels.shape[1] :] == 1
                labels = labels.masked_fill(~scored, -100)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return HeadOutput(logits, loss, out.past_key_values, out.hidden_states, out.attentions)


class SequenceClassifier(Head):
    """BioGPT with a linear layer, without bias, on the last token that is not padding."""

    def __init__(self, config: BioGptConfig) -> None:
        super().__init__(config)
        self.biogpt = BioGptModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        initialize(self.score, config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool = False,
        labels: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> HeadOutput:
        """Score the labels of each sequence.

        Args:
            labels: by ``config.problem_type``, or by their type when it is None: [B] int64 ids (single
                label), [B, N] floats 0 or 1 (multi-label), [B] or [B, N] floats (regression; chosen when N is
                1).
            The others are those of ``BioGptModel.forward``.

        Returns:
            ``logits`` [B, N]; ``loss``: mean cross-entropy, binary cross-entropy or squared error.
        """
        out = self.biogpt(
            input_ids,
            attention_mask,
            inputs_embeds,
            position_ids,
            head_mask,
            past_key_values,
            use_cache,
            output_attentions,
            output_hidden_states,
        )
        hidden = out.last_hidden_state
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        logits = self.score(hidden[rows, self._last_token(input_ids, hidden)])
        loss = self._loss(logits, labels) if labels is not None else None
        return HeadOutput(logits, loss, out.past_key_values, out.hidden_states, out.attentions)

    def _last_token(self, input_ids: Tensor | None, hidden: Tensor) -> Tensor | int:
        """Index of the rightmost token that is not padding, [B]; embeddings count as unpadded."""
        if input_ids is None:
            return -1
        index = torch.arange(input_ids.shape[1], device=hidden.device)
        return (index * (input_ids != self.config.pad_token_id)).argmax(dim=1)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        match self.config.problem_type or self._problem_type(labels):
            case "regression":
                return F.mse_loss(logits.view(labels.shape), labels.float())
            case "single_label_classification":
                return F.cross_entropy(logits, labels.view(-1).long())
            case _:
                return F.binary_cross_entropy_with_logits(logits, labels.float())

    def _problem_type(self, labels: Tensor) -> str:
        if self.config.num_labels == 1:
            return "regression"
        integers: Any = (torch.int64, torch.int32)
        return "single_label_classification" if labels.dtype in integers else "multi_label_classification"
