"""Labels of words as a chain: which label follows which is learned, too (Lafferty et al. 2001, CRF).

B rows, T words of the longest, W words of all rows, N labels. A chain scores a sequence by the sum of its
words' scores and of the steps from label to label, with one into the first and one out of the last.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NEVER = -1e4  # a score so low that its probability is 0, and still a number to compute with


class LabelChain(nn.Module):
    """A linear-chain conditional random field.

    Attributes:
        transitions: [N + 1, N + 1], from label (row) to label (column); the last row is the start of a row of
            words, the last column its end.
    """

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(labels + 1, labels + 1))

    def loss(self, scores: Tensor, right: Tensor, counts: list[int]) -> Tensor:
        """-log of the probability that each word has one of its right labels, nats a word.

        Args:
            scores: [W, N], row after row; -inf for labels that are not asked for.
            right: [W, N], 1 for the labels that would be right, at least one a word, and 0 for others.
            counts: words of each row, none of them 0.
        """
        asked = _padded(scores.clamp_min(_NEVER), counts)
        allowed = _padded(scores.masked_fill(right == 0, _NEVER).clamp_min(_NEVER), counts)
        both = self._log_partition(torch.cat([asked, allowed]), counts * 2)
        every, some = both.chunk(2)
        return (every - some).sum() / len(scores)

    def _log_partition(self, scores: Tensor, counts: list[int]) -> Tensor:
        """[B] log of the summed weights of all sequences of labels; ``scores`` is [B, T, N]."""
        into, out, between = self.transitions[-1, :-1], self.transitions[:-1, -1], self.transitions[:-1, :-1]
        reached = [scores[:, 0] + into]
        for word in range(1, scores.shape[1]):
            before = reached[-1][:, :, None] + between
            reached.append(before.logsumexp(dim=1) + scores[:, word])
        rows = torch.arange(len(counts), device=scores.device)
        last = torch.stack(reached, dim=1)[rows, torch.tensor(counts, device=scores.device) - 1]
        return (last + out).logsumexp(dim=1)

    def log_marginals(self, scores: Tensor, counts: list[int]) -> Tensor:
        """Log-probabilities of the labels of each word over all sequences, [W, N]; see ``loss``.

        Forward and backward in one pass (Rabiner 1989, with its scaling), in float64.
        """
        scores = scores.double()
        weights = (scores - scores.amax(dim=1, keepdim=True)).exp()
        rows = weights.split(counts)
        # Backward, each row starts at its own end, so that padding never comes before a word.
        ahead, back = _padded(weights, counts), _padded(torch.cat([row.flip(0) for row in rows]), counts)
        between = self.transitions.double().exp()
        steps = torch.stack([between[:-1, :-1], between[:-1, :-1].T])
        coming = torch.stack([between[-1, :-1], between[:-1, -1]])[:, None].expand(2, len(counts), -1)
        both = torch.stack([ahead, back])
        seen = []  # [2, B, N] for each word: what comes from before it, and from after it
        for word in range(both.shape[2]):
            seen.append(coming)
            reached = coming * both[:, :, word]
            coming = (reached / reached.sum(dim=-1, keepdim=True)) @ steps
        before, after = torch.stack(seen, dim=2)
        joined = [
            before[row, :count] * weight * after[row, :count].flip(0)
            for row, (count, weight) in enumerate(zip(counts, rows, strict=True))
        ]
        found = torch.cat(joined)
        return (found / found.sum(dim=1, keepdim=True)).log().float()


def _padded(words: Tensor, counts: list[int]) -> Tensor:
    """[W, N] as [B, T, N]."""
    length = max(counts)
    return torch.stack([F.pad(row, (0, 0, 0, length - len(row))) for row in words.split(counts)])
