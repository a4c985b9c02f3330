"""Task heads on the decoder, with their losses: causal language model, token and sequence classification.

Letters as in ``biogpt.model.decoder``: B batch, T positions, D width, V vocabulary; N labels, W words of all
rows.
"""

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
from biogpt.model.readers import LabelAttention, Reader, WordEncoder, dropout_of, pooled


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


def _refuse(config: BioGptConfig, head: str, name: str, wanted: int | str) -> None:
    """Refuse a config with a field that is for another head."""
    value = getattr(config, name)
    if value != wanted:
        raise ValueError(f"config: {name} is {value!r}, which is not for {head}: expected {wanted!r}")


class TokenClassifier(Head):
    """BioGPT with dropout and a linear layer on every position; with ``word_encoder_size``, on every word."""

    def __init__(self, config: BioGptConfig) -> None:
        super().__init__(config)
        for name, wanted in (("pooling", "last"), ("sentence_encoder_size", 0)):
            _refuse(config, "token classification", name, wanted)
        self.biogpt = BioGptModel(config)
        self.dropout = nn.Dropout(dropout_of(config))
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
        """Calibrated log-probabilities of the labels of each word, [W, N] float32, from what ``read`` gave.

        A temperature changes no label: of any two ways to label the words, the likelier one stays that.
        """
        if self.chain is not None:
            scores = self.chain.log_marginals(scores, counts)
        return (scores.float() / self.config.score_temperature).log_softmax(dim=-1)

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
    """BioGPT with a linear layer, without bias, on the last token that is not padding.

    With ``pooling`` or ``read_layers``, what is read is normalised first; with the pooling ``attention`` it
    is the tokens, and each label has a vector of its own made of them. With ``sentence_encoder_size`` a text
    is read sentence by sentence: a recurrent layer reads the vectors of the sentences of an abstract both
    ways, and with ``label_chain`` their labels are scored as a chain (Jin & Szolovits 2018, arXiv:1808.06161;
    the decoder is in the place of their layer of words).
    """

    def __init__(self, config: BioGptConfig) -> None:
        super().__init__(config)
        _refuse(config, "sequence classification", "word_encoder_size", 0)
        self.biogpt = BioGptModel(config)
        width, size = config.hidden_size, config.sentence_encoder_size
        is_plain = config.pooling == "last" and not size and not config.read_layers
        self.norm = None if is_plain else nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.0 if is_plain else dropout_of(config))
        self.attention = LabelAttention(config) if config.pooling == "attention" else None
        self.sentences = Reader(width, size, dropout_of(config)) if size else None
        self.chain = LabelChain(config.num_labels) if config.label_chain else None
        inner = config.pooling_size if self.attention is not None else 2 * size or width
        self.score = nn.Linear(inner, config.num_labels, bias=False)
        initialize(self.score, config)

    def read(self, vectors: Tensor, counts: list[int]) -> Tensor:
        """Score the labels of texts, or of the sentences of abstracts.

        Args:
            vectors: [R, D] that ``pooled`` gave of R texts, sentences, or tokens for attention.
            counts: sentences of each abstract, for a sentence encoder; tokens of each text, for attention.
                They sum to R.

        Returns:
            [R, N] logits; [B, N] of the B texts with attention. Those of a text, or an abstract, do not
            depend on the others.
        """
        if self.norm is not None:
            vectors = self.norm(vectors.to(self.norm.weight.dtype))
        if self.attention is not None:
            return self.attention(vectors, counts, self.score.weight)
        if self.sentences is not None:
            return self.score(self.sentences(vectors, counts))
        return self.score(self.dropout(vectors))

    def probabilities(self, scores: Tensor, counts: list[int]) -> Tensor:
        """Calibrated probabilities of the labels, [R, N] float32, from what ``read`` gave."""
        config, scores = self.config, scores.float()
        if config.problem_type == "multi_label_classification":
            return (scores / config.score_temperature + config.score_bias).sigmoid()
        if self.chain is not None:
            scores = self.chain.log_marginals(scores, counts)
        return (scores / config.score_temperature).softmax(dim=-1)

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

        Raises:
            ValueError: the model has a sentence encoder, which needs to know the sentences; or as
                ``BioGptModel.forward``.
        """
        if self.sentences is not None:
            raise ValueError(
                f"a model with sentence_encoder_size {self.config.sentence_encoder_size} labels the "
                "sentences of a text; use TextClassifier.sentences, or pooled() and read()"
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
        hidden = out.last_hidden_state
        spans = self._spans(input_ids, hidden)
        counts = [1] * len(spans)
        if self.attention is not None:
            counts = [last + 1 - first for _, first, last in spans]
            spans = [(row, token, token) for row, first, last in spans for token in range(first, last + 1)]
        logits = self.read(pooled(hidden, spans, self.config.pooling), counts)
        loss = self._loss(logits, labels) if labels is not None else None
        return HeadOutput(logits, loss, out.past_key_values, out.hidden_states, out.attentions)

    def _spans(self, input_ids: Tensor | None, hidden: Tensor) -> list[tuple[int, int, int]]:
        """Of each row the first token after the separator, and the last that is not padding.

        Embeddings count as unpadded, and of a row of padding its first token is read, as in the reference.
        """
        if input_ids is None:
            return [(row, min(1, hidden.shape[1] - 1), hidden.shape[1] - 1) for row in range(len(hidden))]
        spans = []
        for row, padded in enumerate((input_ids == self.config.pad_token_id).tolist()):
            tokens = [index for index, is_padding in enumerate(padded) if not is_padding] or [0]
            spans.append((row, tokens[:2][-1], tokens[-1]))
        return spans

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
