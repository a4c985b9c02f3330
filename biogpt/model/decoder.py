"""The BioGPT decoder: learned positions, pre-norm layers, scaled embeddings.

Luo et al., "BioGPT: generative pre-trained transformer for biomedical text generation and mining",
Briefings in Bioinformatics 2022 (arXiv 2210.10341); reference: ``transformers`` ``models/biogpt``.

Letters: B batch, T query positions, S key positions (past and new), H heads, D width, L layers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from biogpt.model.cache import KVCache
from biogpt.model.config import BioGptConfig

POSITION_OFFSET = 2  # fairseq keeps the first two rows of the position table for padding

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
}


@dataclass
class ModelOutput:
    """What ``BioGptModel`` returns.

    Attributes:
        last_hidden_state: [B, T, D], after the last LayerNorm.
        past_key_values: the cache, when one was used.
        hidden_states: L + 1 tensors [B, T, D]: the embeddings, then each layer's output, the last one normed.
        attentions: L tensors [B, H, T, S] of attention probabilities, after dropout and head mask.
    """

    last_hidden_state: Tensor
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, config: BioGptConfig, layer: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer = layer
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj: nn.Module = nn.Linear(width, width)
        self.qkv_proj: nn.Module | None = None

    def fuse(self, projection: nn.Module) -> None:
        """Compute queries, keys and values by one layer, [..., D] to [..., 3 D], in place of three."""
        del self.q_proj, self.k_proj, self.v_proj
        self.qkv_proj = projection

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        head_mask: Tensor | None,
        cache: KVCache | None,
        with_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from T new positions to all S positions.

        Args:
            hidden: [B, T, D].
            mask: [B or 1, 1, T or 1, S], added to the scores; None means causal without padding.
            head_mask: [H], multiplies each head's probabilities.
            cache: where keys and values of earlier positions are, and the new ones go.
            with_weights: also return the probabilities.

        Returns:
            [B, T, D], and [B, H, T, S] or None.
        """
        batch, length, width = hidden.shape
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)  # [B, H, T, D/H]
            for part in self.query_key_value(hidden)
        )
        if cache is not None:
            # [B, H, S, D/H]; a cache may be more precise than the model.
            key, value = (part.to(query.dtype) for part in cache.write(self.layer, key, value))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if with_weights or head_mask is not None:
            scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
            if mask is None and length > 1:
                mask = causal_mask(length, length, hidden)
            if mask is not None:
                scores = scores + mask
            weights = F.dropout(scores.softmax(dim=-1), dropout)
            if head_mask is not None:
                weights = weights * head_mask.view(1, -1, 1, 1)
            mixed = weights @ value
        else:
            causal = mask is None and length > 1
            mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal)
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        return self.out_proj(mixed), weights if with_weights else None

    @property
    def projections(self) -> list[nn.Module]:
        """The layers for queries, keys and values: three, or one for all."""
        if self.qkv_proj is not None:
            return [self.qkv_proj]
        return [self.q_proj, self.k_proj, self.v_proj]

    def query_key_value(self, hidden: Tensor) -> list[Tensor]:
        """Queries, keys and values, each in the shape of ``hidden``, [..., D]."""
        given = [projection(hidden) for projection in self.projections]
        return given if len(given) == 3 else list(given[0].chunk(3, dim=-1))


class DecoderLayer(nn.Module):
    """Pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: BioGptConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.fc1: nn.Module = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2: nn.Module = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)
        self.activation = _ACTIVATIONS[config.hidden_act]()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        head_mask: Tensor | None,
        cache: KVCache | None,
        with_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results are those of ``Attention.forward``."""
        attended, weights = self.self_attn(
            self.self_attn_layer_norm(hidden), mask, head_mask, cache, with_weights
        )
        hidden = hidden + self.dropout(attended)
        return hidden + self.dropout(self.feed_forward(self.final_layer_norm(hidden))), weights

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """The two-layer perceptron on each position by itself, [..., D] to [..., D]."""
        return self.fc2(self.activation_dropout(self.activation(self.fc1(hidden))))


class BioGptModel(nn.Module):
    """The bare decoder: ids or embeddings in, hidden states out.

    ``gradient_checkpointing`` recomputes each layer in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: BioGptConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embed_scale = math.sqrt(config.hidden_size) if config.scale_embedding else 1.0
        # Drawn below, by ``initialize``; on the meta device, drawing them here would import a second of
        # software.
        self.embed_tokens, self.embed_positions = (
            nn.Embedding.from_pretrained(torch.empty(rows, config.hidden_size), freeze=False)
            for rows in (config.vocab_size, config.max_position_embeddings + POSITION_OFFSET)
        )
        self.embed_tokens.padding_idx = config.pad_token_id
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.layer_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        initialize(self, config)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        self.embed_tokens = embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> ModelOutput:
        """Run T new positions through the decoder.

        Args:
            input_ids: [B, T] token ids; or ``inputs_embeds``: [B, T, D], scaled already.
            attention_mask: [B, S], 1 for tokens and 0 for padding on either side, past positions included.
            position_ids: [B, T] from 0; counted from ``attention_mask`` when None, so that padding on
                the left does not shift a row.
            head_mask: [H] or [L, H], 1 keeps a head and 0 silences it.
            past_key_values: a cache with room for T more positions; it is written to.
            use_cache: allocate a cache when none is given.
            output_attentions, output_hidden_states: fill the fields of that name.

        Raises:
            ValueError: both or none of ids and embeddings; shapes that do not fit; more positions than
                ``max_position_embeddings`` or than the cache holds.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, not both and not none")
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None
        batch, length = given.shape[:2]
        cache = past_key_values
        past = cache.length if cache is not None else 0
        self._check_lengths(batch, past, length, attention_mask, position_ids)
        if self.config.bidirectional_layers and (cache is not None or use_cache):
            raise ValueError(
                f"a model with bidirectional_layers = {self.config.bidirectional_layers} "
                "reads a text as a whole; "
                "leave the cache out (past_key_values, use_cache)"
            )
        if cache is not None:
            cache.require(batch, length)
        head_masks = self._head_masks(head_mask)

        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids) * self.embed_scale
        if cache is None and use_cache:
            cache = KVCache(self.config, batch, None, inputs_embeds.device, inputs_embeds.dtype)
        if position_ids is None:
            position_ids = positions(attention_mask, past, length, inputs_embeds.device)
        hidden = self.dropout(inputs_embeds + self.embed_positions(position_ids + POSITION_OFFSET))
        causal = attention_bias(attention_mask, past, length, hidden)
        masks = [causal] * self.config.num_hidden_layers
        if self.config.bidirectional_layers:
            masks[-self.config.bidirectional_layers :] = [
                bidirectional_bias(attention_mask, length, hidden)
            ] * self.config.bidirectional_layers

        hidden_states = [hidden]
        attentions = []
        read = self.config.read_layers or len(self.layers)
        for layer, mask, layer_head_mask in islice(zip(self.layers, masks, head_masks, strict=True), read):
            if self.training and self.config.layerdrop > 0 and torch.rand(()) < self.config.layerdrop:
                continue
            arguments = (hidden, mask, layer_head_mask, cache, output_attentions)
            if self.gradient_checkpointing and self.training:
                hidden, weights = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                hidden, weights = layer(*arguments)
            hidden_states.append(hidden)
            attentions.append(weights)
        if cache is not None:
            cache.advance(length)
        if not self.config.read_layers:
            hidden = self.layer_norm(hidden)
            hidden_states[-1] = hidden
        return ModelOutput(
            last_hidden_state=hidden,
            past_key_values=cache,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _check_lengths(
        self,
        batch: int,
        past: int,
        length: int,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
    ) -> None:
        limit = self.config.max_position_embeddings
        if length < 1:
            raise ValueError("the input has no positions; give at least one token")
        if past + length > limit:
            raise ValueError(
                f"{past + length} positions ({past} cached, {length} new) are more than the model's {limit}; "
                f"cut {past + length - limit} tokens"
            )
        if attention_mask is not None and attention_mask.shape != (batch, past + length):
            raise ValueError(
                f"attention_mask has the shape {tuple(attention_mask.shape)}; "
                f"expected ({batch}, {past + length}): {past} cached and {length} new positions"
            )
        if position_ids is not None and int(position_ids.max()) >= limit:
            raise ValueError(f"position_ids go up to {int(position_ids.max())}; the last one is {limit - 1}")

    def _head_masks(self, head_mask: Tensor | None) -> list[Tensor | None]:
        layers, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        if head_mask is None:
            return [None] * layers
        if head_mask.shape not in ((heads,), (layers, heads)):
            raise ValueError(
                f"head_mask has the shape {tuple(head_mask.shape)}; expected ({heads},) "
                f"or ({layers}, {heads})"
            )
        return list(head_mask.expand(layers, heads))


def positions(attention_mask: Tensor | None, past: int, length: int, device: torch.device) -> Tensor:
    """Positions of the T new tokens, [B or 1, T]: how many tokens, padding left out, come before each."""
    if attention_mask is None:
        return torch.arange(past, past + length, device=device)[None]
    mask = attention_mask.long()
    return (mask.cumsum(dim=1) * mask - 1)[:, past:]


def attention_bias(attention_mask: Tensor | None, past: int, length: int, hidden: Tensor) -> Tensor | None:
    """What is added to the scores: 0 where a query may look and the least number elsewhere.

    Returns:
        [B or 1, 1, T, S]; None where causal attention without padding, or one query, needs no mask.
    """
    if attention_mask is None and (past == 0 or length == 1):
        return None
    causal = causal_mask(length, past + length, hidden)
    if attention_mask is None:
        return causal
    padded = attention_mask[:, None, None, :] == 0
    return causal.masked_fill(padded, torch.finfo(hidden.dtype).min)


def bidirectional_bias(attention_mask: Tensor | None, length: int, hidden: Tensor) -> Tensor:
    """What is added to the scores where a query may look both ways: 0, and the least number at padding.

    Returns:
        [B or 1, 1, 1, T].
    """
    bias = torch.zeros((1, 1, 1, length), dtype=hidden.dtype, device=hidden.device)
    if attention_mask is None:
        return bias
    return bias.masked_fill(attention_mask[:, None, None, :] == 0, torch.finfo(hidden.dtype).min)


def causal_mask(length: int, total: int, like: Tensor) -> Tensor:
    """[1, 1, T, S] for the last T = ``length`` of S = ``total`` positions."""
    # The least number, not -inf: the row of a padded query is masked throughout and must stay finite.
    full = torch.full((length, total), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return full.triu(total - length + 1)[None, None]


def initialize(module: nn.Module, config: BioGptConfig) -> None:
    """Draw every weight as the reference does: N(0, initializer_range), biases 0, norms 1, padding 0."""
    for part in module.modules():
        if not isinstance(part, nn.Linear | nn.Embedding) or part.weight.is_meta:
            continue
        nn.init.normal_(part.weight, std=config.initializer_range)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            nn.init.zeros_(part.weight[part.padding_idx])
