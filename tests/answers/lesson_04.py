"""Answers to the exercises of lesson 04, text conditioning."""

from __future__ import annotations

import itertools
import math
import random
import re
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from answers import right, wrong
from minimagen.checks import lesson_04 as check
from minimagen.data.shapes import (
    COLOURS,
    FULL,
    RELATIONS,
    UNTILTED,
    Description,
    ObjectDescription,
    sample_description,
)
from minimagen.data.wording import phrasings
from minimagen.guidance import guide
from minimagen.layers import Attention

# --- 4.1 ------------------------------------------------------------------------------------------


@right(check.padding)
def by_pad_sequence(rows):
    text = pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return text, torch.arange(text.shape[1]) < lengths[:, None]


@right(check.padding)
def copied_row_by_row(rows):
    n = max(len(row) for row in rows)
    text = rows[0].new_zeros(len(rows), n, rows[0].shape[1])
    mask = torch.zeros(len(rows), n, dtype=torch.bool)
    for i, row in enumerate(rows):
        text[i, : len(row)] = row
        mask[i, : len(row)] = True
    return text, mask


@right(check.padding)
def padded_with_infinity_first(rows):
    text = pad_sequence(rows, batch_first=True, padding_value=math.inf)
    mask = text[:, :, 0] != math.inf
    return [text.masked_fill(~mask[..., None], 0), mask]


@right(check.padding)
def mask_of_padded_ones(rows):
    ones = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
    return pad_sequence(rows, True), ones == 1


@wrong(check.padding, "the mask is inverted")
def mask_of_padding(rows):
    text, mask = by_pad_sequence(rows)
    return text, ~mask


@wrong(check.padding, "a token whose numbers are all 0 is a token too")
def mask_of_values(rows):
    text, _ = by_pad_sequence(rows)
    return text, text.abs().sum(-1) > 0


@wrong(check.padding, "batch_first=True")
def batch_second(rows):
    return pad_sequence(rows), by_pad_sequence(rows)[1]


@wrong(check.padding, "it has to be boolean")
def mask_of_numbers(rows):
    text, mask = by_pad_sequence(rows)
    return text, mask.float()


@wrong(check.padding, "words are lost")
def cut_to_the_shortest(rows):
    n = min(len(row) for row in rows)
    return torch.stack([row[:n] for row in rows]), torch.ones(len(rows), n, dtype=torch.bool)


@wrong(check.padding, "the padding belongs behind")
def padded_in_front(rows):
    n = max(len(row) for row in rows)
    text = torch.stack([F.pad(row, (0, 0, n - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return text, torch.arange(n) >= n - lengths[:, None]


@wrong(check.padding, "the length of the longest caption of the batch")
def always_64_tokens(rows):
    text = torch.stack([F.pad(row[:64], (0, 0, 0, max(0, 64 - len(row)))) for row in rows])
    return text, torch.arange(64) < torch.tensor([len(row) for row in rows])[:, None]


@wrong(check.padding, "(sorted by length?)")
def longest_first(rows):
    return by_pad_sequence(sorted(rows, key=len, reverse=True))


@wrong(check.padding, "changed the list")
def sorts_the_list_itself(rows):
    rows.sort(key=len)
    return by_pad_sequence(rows)


@wrong(check.padding, "every place counts")
def mask_of_ones(rows):
    text, mask = by_pad_sequence(rows)
    return text, torch.ones_like(mask)


@wrong(check.padding, "one value a token")
def mask_for_every_number(rows):
    text, mask = by_pad_sequence(rows)
    return text, mask[..., None].expand_as(text)


@wrong(check.padding, "float32, where float64 is due")
def padded_in_single_precision(rows):
    text = torch.zeros(len(rows), max(len(row) for row in rows), rows[0].shape[1])
    for i, row in enumerate(rows):
        text[i, : len(row)] = row
    return text, by_pad_sequence(rows)[1]


@wrong(check.padding, "repeats the last token")
def last_token_repeated(rows):
    n = max(len(row) for row in rows)
    text = torch.stack([row[torch.arange(n).clamp(max=len(row) - 1)] for row in rows])
    return text, by_pad_sequence(rows)[1]


@wrong(check.padding, "off by one")
def last_token_not_counted(rows):
    text, _ = by_pad_sequence(rows)
    lengths = torch.tensor([len(row) for row in rows])
    return text, torch.arange(text.shape[1]) < lengths[:, None] - 1


@wrong(check.padding, "off by one")
def one_place_too_many(rows):
    text, _ = by_pad_sequence(rows)
    lengths = torch.tensor([len(row) for row in rows])
    return text, torch.arange(text.shape[1]) <= lengths[:, None]


# --- 4.2 ------------------------------------------------------------------------------------------


def _weights(q, k, mask):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask[:, None, :], -torch.inf).softmax(-1)


@right(check.attention)
def by_einops(q, k, v, mask):
    scores = einsum(q, k, "b n d, b m d -> b n m") * q.shape[-1] ** -0.5
    scores = torch.where(rearrange(mask, "b m -> b 1 m"), scores, float("-inf"))
    return einsum(scores.softmax(-1), v, "b n m, b m e -> b n e")


@right(check.attention)
def one_caption_after_the_other(q, k, v, mask):
    """Without any mask in the scores: the masked words are left out."""
    rows = []
    for q_i, k_i, v_i, mask_i in zip(q, k, v, mask, strict=True):
        scores = q_i @ k_i[mask_i].T / math.sqrt(q.shape[-1])
        rows.append(torch.softmax(scores, -1) @ v_i[mask_i])
    return torch.stack(rows)


@right(check.attention)
def an_additive_mask(q, k, v, mask):
    m = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    m = m[:, None].expand(-1, q.shape[1], -1)  # (B, M) -> (B, N, M)
    return torch.softmax(torch.baddbmm(m, q, k.mT, alpha=q.shape[-1] ** -0.5), -1) @ v


@right(check.attention)
def exponentials_by_hand(q, k, v, mask):
    keep = mask[:, None, :]
    scores = (q / math.sqrt(q.shape[-1])) @ k.mT
    largest = scores.masked_fill(~keep, -1e30).amax(-1, keepdim=True)
    shares = torch.where(keep, (scores - largest).clamp(max=0).exp(), 0)
    return shares @ v / shares.sum(-1, keepdim=True)


@wrong(check.attention, "a loud padding takes the whole softmax")
def renormalised_after_the_softmax(q, k, v, mask):
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) * mask[:, None]
    return weights / weights.sum(-1, keepdim=True) @ v


@right(check.attention)
def a_very_negative_score(q, k, v, mask):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask[:, None], torch.finfo(q.dtype).min).softmax(-1) @ v


@wrong(check.attention, "the mask is inverted")
def listens_to_the_padding(q, k, v, mask):
    return _weights(q, k, ~mask) @ v


@wrong(check.attention, "the mask is ignored")
def hears_everything(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v)


@wrong(check.attention, "the mask comes after the softmax")
def masked_after_the_softmax(q, k, v, mask):
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return weights.masked_fill(~mask[:, None], 0) @ v


@wrong(check.attention, "the mask comes after the softmax")
def masked_values_only(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v * mask[..., None])


@wrong(check.attention, "e^0 = 1 is no small weight")
def mask_multiplied_onto_the_scores(q, k, v, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1]) * mask[:, None]).softmax(-1) @ v


@wrong(check.attention, "e^0 = 1 is no small weight")
def masked_keys_only(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k * mask[..., None], v)


@wrong(check.attention, "here it ran over the pixels")
def softmax_over_the_pixels(q, k, v, mask):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask[:, None, :], -torch.inf).softmax(1) @ v


@wrong(check.attention, "over the pixels")
def softmax_over_the_pixels_then_masked(q, k, v, mask):
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(1)
    return weights.masked_fill(~mask[:, None], 0) @ v


@wrong(check.attention, "sqrt(d) is missing")
def without_sqrt(q, k, v, mask):
    return _weights(q * math.sqrt(q.shape[-1]), k, mask) @ v


@wrong(check.attention, "divided by d, where its square root belongs")
def divided_by_d(q, k, v, mask):
    return _weights(q / math.sqrt(q.shape[-1]), k, mask) @ v


@wrong(check.attention, "nan comes out")
def infinity_times_zero(q, k, v, mask):
    m = (~mask).to(q.dtype) * -torch.inf
    return (q @ k.mT / math.sqrt(q.shape[-1]) + m[:, None]).softmax(-1) @ v


@wrong(check.attention, "not low enough")
def a_score_of_minus_fifty(q, k, v, mask):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask[:, None], -50.0).softmax(-1) @ v


@wrong(check.attention, "e^900 is too large")
def exponentials_of_large_scores(q, k, v, mask):
    shares = (q @ k.mT / math.sqrt(q.shape[-1])).exp() * mask[:, None]
    return shares / shares.sum(-1, keepdim=True) @ v


@wrong(check.attention, "no gradient flows back")
def detached(q, k, v, mask):
    return (_weights(q, k, mask) @ v).detach()


@wrong(check.attention, "its gradient with respect to q")
def detached_weights(q, k, v, mask):
    return _weights(q, k, mask).detach() @ v


@wrong(check.attention, "weighted by the softmax")
def one_mask_for_all_captions(q, k, v, mask):
    return _weights(q, k, mask[:1].expand_as(mask)) @ v


@wrong(check.attention, "does not always stand behind")
def only_the_lengths(q, k, v, mask):
    """Right if the padding stood at the end, but it may stand anywhere."""
    return _weights(q, k, torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True)) @ v


@wrong(check.attention, "weighted by the softmax")
def the_loudest_word_alone(q, k, v, mask):
    loudest = _weights(q, k, mask).argmax(-1)  # (B, N)
    return torch.gather(v, 1, loudest[..., None].expand(-1, -1, v.shape[-1]))


@wrong(check.attention, "e times as loud")
def mask_added_as_a_number(q, k, v, mask):
    return (q @ k.mT / math.sqrt(q.shape[-1]) + mask[:, None]).softmax(-1) @ v


@wrong(check.attention, "weighted by the softmax")
def shares_without_a_softmax(q, k, v, mask):
    scores = q @ k.mT / math.sqrt(q.shape[-1]) * mask[:, None]
    return scores / scores.sum(-1, keepdim=True) @ v


@wrong(check.attention, "a score of 900 breaks it")
def scores_clamped(q, k, v, mask):
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).clamp(-50, 50)
    return scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ v


@wrong(check.attention, "the padding has an influence")
def renormalised_with_an_epsilon(q, k, v, mask):
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) * mask[:, None]
    return weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v


# --- 4.3 ------------------------------------------------------------------------------------------


class _Pool(nn.Module):
    def __init__(self, dim, queries):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, dim))

    def scores(self, text):
        return self.queries @ text.mT / math.sqrt(text.shape[-1])  # (B, Q, N)

    def weights(self, text, mask):
        return self.scores(text).masked_fill(~mask[:, None], -torch.inf).softmax(-1)

    def forward(self, text, mask):
        return (self.weights(text, mask) @ text).flatten(1)


@right(check.pooling)
class PoolByTorch(_Pool):
    def forward(self, text, mask):
        p = repeat(self.queries, "q d -> b q d", b=len(text))
        out = F.scaled_dot_product_attention(p, text, text, attn_mask=mask[:, None])
        return rearrange(out, "b q d -> b (q d)")


@right(check.pooling)
class PoolQueryByQuery(nn.Module):
    def __init__(self, dim, queries):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, dim))
        nn.init.uniform_(self.queries, -0.1, 0.1)

    def forward(self, text, mask):
        answers = []
        for p in self.queries:
            scores = (text * p).sum(-1) / len(p) ** 0.5  # (B, N)
            scores = scores.where(mask, torch.tensor(-torch.inf, dtype=scores.dtype))
            answers.append((scores.softmax(1)[..., None] * text).sum(1))
        return torch.cat(answers, dim=1)


@right(check.pooling)
class PoolByThePackage(_Pool):
    def forward(self, text, mask):
        dim = text.shape[-1]
        attention = Attention(dim, dim, heads=1, head_dim=dim).to(text.dtype)
        for layer in attention.children():
            nn.init.eye_(layer.weight)
        return attention(self.queries.expand(len(text), -1, -1), text, mask).reshape(len(text), -1)


@right(check.pooling)
class PoolCaptionByCaption(_Pool):
    def forward(self, text, mask):
        kept = [h[counts] for h, counts in zip(text, mask, strict=True)]
        pooled = [F.softmax(self.queries @ h.T / math.sqrt(h.shape[1]), dim=1) @ h for h in kept]
        return torch.stack([p.reshape(-1) for p in pooled])


@right(check.pooling)
class PoolWithItsScale(nn.Module):
    def __init__(self, dim, queries):
        super().__init__()
        self.register_parameter("queries", nn.Parameter(torch.rand(queries, dim)))
        self.register_buffer("scale", torch.tensor(dim**-0.5))

    def forward(self, text, mask):
        pooled = []
        for p in self.queries:
            scores = (text @ p * self.scale).masked_fill(~mask, -1e30)  # (B, N)
            pooled.append((scores.softmax(1)[:, None] @ text).squeeze(1))
        return torch.hstack(pooled)


@wrong(check.pooling, "the mask is ignored")
class PoolEverything(_Pool):
    def forward(self, text, mask):
        return super().forward(text, torch.ones_like(mask))


@wrong(check.pooling, "the mask is inverted")
class PoolPadding(_Pool):
    def forward(self, text, mask):
        return super().forward(text, ~mask)


@wrong(check.pooling, "the queries are not used")
class PoolMean(_Pool):
    def forward(self, text, mask):
        keep = mask[..., None]
        mean = (text * keep).sum(1) / keep.sum(1)
        return mean.repeat(1, len(self.queries))


@wrong(check.pooling, "over the queries")
class PoolSoftmaxOverQueries(_Pool):
    def forward(self, text, mask):
        weights = self.scores(text).softmax(1) * mask[:, None]
        return (weights @ text).flatten(1)


@wrong(check.pooling, "Does your softmax run over the words")
class PoolMaskedSoftmaxOverQueries(_Pool):
    def weights(self, text, mask):
        return self.scores(text).masked_fill(~mask[:, None], -torch.inf).softmax(1)


@wrong(check.pooling, "weighted by the softmax")
class PoolFirstQueryOnly(_Pool):
    def forward(self, text, mask):
        return (self.weights(text, mask)[:, :1] @ text).flatten(1).repeat(1, len(self.queries))


@wrong(check.pooling, "weighted by the softmax of p_j h^T / sqrt(D)")
class PoolSqrtOfQueries(_Pool):
    def scores(self, text):
        return self.queries @ text.mT / math.sqrt(len(self.queries))


@wrong(check.pooling, "should give the mean of the words that count")
class PoolLargest(_Pool):
    def forward(self, text, mask):
        largest = text.masked_fill(~mask[..., None], -torch.inf).amax(1)
        return largest.repeat(1, len(self.queries))


@wrong(check.pooling, "divided by sqrt(D)")
class PoolWithoutSqrt(_Pool):
    def scores(self, text):
        return self.queries @ text.mT


@wrong(check.pooling, "interleaved")
class PoolInterleaved(_Pool):
    def forward(self, text, mask):
        return (text.mT @ self.weights(text, mask).mT).flatten(1)  # (B, D, Q)


@wrong(check.pooling, "the weights do not add up to 1")
class PoolMaskedAfterTheSoftmax(_Pool):
    def forward(self, text, mask):
        return (self.scores(text).softmax(-1) * mask[:, None] @ text).flatten(1)


@wrong(check.pooling, "mixes what they have found")
class PoolMeanOfAnswers(_Pool):
    def forward(self, text, mask):
        return (self.weights(text, mask) @ text).mean(1)


@wrong(check.pooling, "flatten (B, Q, D)")
class PoolNotFlat(_Pool):
    def forward(self, text, mask):
        return self.weights(text, mask) @ text


@wrong(check.pooling, "no optimiser would find them")
class PoolOfPlainTensor(_Pool):
    def __init__(self, dim, queries):
        nn.Module.__init__(self)
        self.queries = torch.randn(queries, dim)


@wrong(check.pooling, "all queries start as the same vector")
class PoolFromZeros(_Pool):
    def __init__(self, dim, queries):
        super().__init__(dim, queries)
        nn.init.zeros_(self.queries)


@wrong(check.pooling, "whatever was in the memory")
class PoolFromEmptyMemory(_Pool):
    def __init__(self, dim, queries):
        nn.Module.__init__(self)
        self.queries = nn.Parameter(torch.empty(queries, dim))


@wrong(check.pooling, "nothing but the queries is learned here")
class PoolWithKeys(_Pool):
    def __init__(self, dim, queries):
        super().__init__(dim, queries)
        self.to_k = nn.Linear(dim, dim)


@wrong(check.pooling, "no gradient reaches the queries")
class PoolDetached(_Pool):
    def weights(self, text, mask):
        return super().weights(text, mask).detach()


@wrong(check.pooling, "in place")
class PoolInPlace(_Pool):
    def forward(self, text, mask):
        text *= mask[..., None]
        return super().forward(text, mask)


@wrong(check.pooling, "all captions are asked the same questions")
class PoolTransposed(_Pool):
    def __init__(self, dim, queries):
        super().__init__(queries, dim)


@wrong(check.pooling, "float32, where float64 is due")
class PoolInSinglePrecision(_Pool):
    def forward(self, text, mask):
        scores = self.queries.float() @ text.float().mT / math.sqrt(text.shape[-1])
        return (scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ text.float()).flatten(
            1
        )


@wrong(check.pooling, "keys and values are the words themselves")
class PoolOfNormalisedWords(_Pool):
    def scores(self, text):
        return super().scores(F.normalize(text, dim=-1))


@wrong(check.pooling, "a class, not a function")
def a_function(dim, queries):
    return lambda text, mask: text.mean(1)


# --- 4.4 ------------------------------------------------------------------------------------------


@right(check.hiding)
def by_index(text, null_text, p, generator):
    out = text.clone()
    out[torch.rand(text.shape[0], generator=generator) < p] = null_text
    return out


@right(check.hiding)
def one_after_the_other(text, null_text, p, generator):
    rows = []
    for words in text:
        hide = torch.rand((), generator=generator).item() < p
        rows.append(null_text.expand_as(words) if hide else words)
    return torch.stack(rows)


@right(check.hiding)
def by_bernoulli(text, null_text, p, generator):
    keep = torch.bernoulli(torch.full((len(text), 1, 1), 1 - p), generator=generator).bool()
    return text.where(keep, null_text)


@right(check.hiding)
def by_a_sum_of_both(text, null_text, p, generator):
    keep = (torch.rand(len(text), 1, 1, generator=generator) >= p).to(text.dtype)
    return keep * text + (1 - keep) * null_text


@wrong(check.hiding, "single tokens are hidden")
def token_by_token(text, null_text, p, generator):
    hide = torch.rand(text.shape[:2], generator=generator) < p
    return torch.where(hide[..., None], null_text, text)


@wrong(check.hiding, "single numbers of the vectors")
def number_by_number(text, null_text, p, generator):
    return torch.where(torch.rand(text.shape, generator=generator) < p, null_text, text)


@wrong(check.hiding, "or none: draw one number for each image and not one for the batch")
def the_whole_batch(text, null_text, p, generator):
    hide = torch.rand(1, generator=generator) < p
    return torch.where(hide, null_text.expand_as(text), text)


@wrong(check.hiding, "p is the probability that a caption is HIDDEN")
def p_is_kept(text, null_text, p, generator):
    keep = torch.rand(len(text), 1, 1, generator=generator) < p
    return torch.where(keep, text, null_text)


@wrong(check.hiding, "filled with 0")
def zeros_for_null_text(text, null_text, p, generator):
    return text * (torch.rand(len(text), 1, 1, generator=generator) >= p)


@wrong(check.hiding, "divided by 1 - p")
def scaled_like_dropout(text, null_text, p, generator):
    hide = torch.rand(len(text), 1, 1, generator=generator) < p
    return torch.where(hide, null_text, text / (1 - p) if p < 1 else text)


@wrong(check.hiding, "your random numbers come from somewhere else")
def without_the_generator(text, null_text, p, generator):
    return torch.where(torch.rand(len(text), 1, 1) < p, null_text, text)


@wrong(check.hiding, "the same captions are hidden in each call")
def seeded_each_time(text, null_text, p, generator):
    generator = torch.Generator().manual_seed(generator.initial_seed())
    return by_index(text, null_text, p, generator)


@wrong(check.hiding, "each image has to be drawn by itself")
def a_fixed_number_of_captions(text, null_text, p, generator):
    out = text.clone()
    out[torch.randperm(len(text), generator=generator)[: round(p * len(text))]] = null_text
    return out


@wrong(check.hiding, "no gradient reaches null_text")
def null_text_detached(text, null_text, p, generator):
    return by_index(text, null_text.detach(), p, generator)


@wrong(check.hiding, "in place")
def hidden_in_place(text, null_text, p, generator):
    text[torch.rand(len(text), generator=generator) < p] = null_text
    return text


@wrong(check.hiding, "added to the text")
def null_text_added(text, null_text, p, generator):
    hide = torch.rand(len(text), 1, 1, generator=generator) < p
    return text + hide * null_text


@wrong(check.hiding, "at the first token alone")
def first_token_only(text, null_text, p, generator):
    out = text.clone()
    out[torch.rand(len(text), generator=generator) < p, 0] = null_text
    return out


@wrong(check.hiding, "torch.rand is never below 0")
def normal_numbers(text, null_text, p, generator):
    hide = torch.randn(len(text), generator=generator) < p
    return torch.where(hide[:, None, None], null_text, text)


@wrong(check.hiding, "a share of p should be hidden in the long run")
def tenths(text, null_text, p, generator):
    hide = torch.randint(0, 10, (len(text), 1, 1), generator=generator) < 10 * p
    return torch.where(hide, null_text, text)


@wrong(check.hiding, "hidden together")
def two_at_a_time(text, null_text, p, generator):
    hide = torch.rand((len(text) + 1) // 2, generator=generator) < p
    return torch.where(hide.repeat_interleave(2)[: len(text), None, None], null_text, text)


@wrong(check.hiding, "single tokens are hidden")
def the_same_places_of_all(text, null_text, p, generator):
    hide = torch.rand(text.shape[1], generator=generator) < p
    return torch.where(hide[:, None], null_text, text)


@wrong(check.hiding, "either as it was or hidden as a whole")
def mixed_with_null_text(text, null_text, p, generator):
    return (1 - p) * text + p * null_text


# --- 4.5 ------------------------------------------------------------------------------------------


def _both(network, z, t, text, null_text):
    nothing = null_text.expand_as(text)
    return network(torch.cat([z, z]), torch.cat([t, t]), torch.cat([text, nothing])).chunk(2)


@right(check.guidance)
def by_the_package(network, z, t, text, null_text, w):
    return guide(*_both(network, z, t, text, null_text), w)


@right(check.guidance)
def side_by_side_by_einops(network, z, t, text, null_text, w):
    nothing = repeat(null_text, "d -> b n d", b=len(text), n=text.shape[1])
    texts = rearrange([nothing, text], "two b n d -> (b two) n d")
    out = network(
        repeat(z, "b c h w -> (b two) c h w", two=2), repeat(t, "b -> (b two)", two=2), texts
    )
    uncond, cond = rearrange(out, "(b two) c h w -> two b c h w", two=2)
    return uncond + w * (cond - uncond)


@right(check.guidance)
def halves_by_index(network, z, t, text, null_text, w):
    texts = torch.cat([torch.zeros_like(text) + null_text, text])
    out = network(z.repeat(2, 1, 1, 1), t.repeat(2), texts)
    return (1 - w) * out[: len(z)] + w * out[len(z) :]


@right(check.guidance)
def no_guidance_where_it_is_off(network, z, t, text, null_text, w):
    if w == 1:
        return network(z, t, text)
    cond, uncond = _both(network, z, t, text, null_text)
    return cond + (w - 1) * (cond - uncond)


@wrong(check.guidance, "are swapped")
def terms_swapped(network, z, t, text, null_text, w):
    cond, uncond = _both(network, z, t, text, null_text)
    return cond + w * (uncond - cond)


@wrong(check.guidance, "are swapped")
def halves_swapped(network, z, t, text, null_text, w):
    uncond, cond = _both(network, z, t, text, null_text)
    return w * cond + (1 - w) * uncond


@wrong(check.guidance, "the other convention")
def one_plus_w(network, z, t, text, null_text, w):
    cond, uncond = _both(network, z, t, text, null_text)
    return (1 + w) * cond - w * uncond


@wrong(check.guidance, "the other convention")
def step_from_cond(network, z, t, text, null_text, w):
    cond, uncond = _both(network, z, t, text, null_text)
    return cond + w * (cond - uncond)


@wrong(check.guidance, "the one without it is not used")
def conditional_only(network, z, t, text, null_text, w):
    return w * network(z, t, text)


@wrong(check.guidance, "the network was called more than once")
def two_calls(network, z, t, text, null_text, w):
    return guide(network(z, t, text), network(z, t, null_text.expand_as(text)), w)


@wrong(check.guidance, "what is doubled has to be doubled in all three")
def time_not_doubled(network, z, t, text, null_text, w):
    out = network(torch.cat([z, z]), t, torch.cat([text, null_text.expand_as(text)]))
    return guide(*out.chunk(2), w)


@wrong(check.guidance, "here it was 0")
def zeros_without_caption(network, z, t, text, null_text, w):
    return guide(*_both(network, z, t, text, torch.zeros_like(null_text)), w)


@wrong(check.guidance, "the texts are mixed")
def texts_mixed(network, z, t, text, null_text, w):
    return network(z, t, w * text + (1 - w) * null_text)


@wrong(check.guidance, "is missing")
def the_step_alone(network, z, t, text, null_text, w):
    cond, uncond = _both(network, z, t, text, null_text)
    return w * (cond - uncond)


@wrong(check.guidance, "texts at other images")
def only_images_side_by_side(network, z, t, text, null_text, w):
    texts = torch.cat([text, null_text.expand_as(text)])
    out = network(z.repeat_interleave(2, 0), t.repeat_interleave(2), texts)
    return guide(*out.chunk(2), w)


@wrong(check.guidance, "taken apart as if")
def images_mixed_up(network, z, t, text, null_text, w):
    """Put together one after the other, taken apart as if side by side."""
    nothing = null_text.expand_as(text)
    out = network(torch.cat([z, z]), torch.cat([t, t]), torch.cat([text, nothing]))
    return guide(out[0::2], out[1::2], w)


@wrong(check.guidance, "w = 0 ignores the caption")
def w_clamped(network, z, t, text, null_text, w):
    return guide(*_both(network, z, t, text, null_text), min(max(w, 1.0), 5.0))


@wrong(check.guidance, "w = 0 ignores the caption")
def clamped_to_images(network, z, t, text, null_text, w):
    """The network may put out noise; thresholds are another lesson."""
    return guide(*_both(network, z, t, text, null_text), w).clamp(-1, 1)


@wrong(check.guidance, "the network was called more than once")
def image_by_image(network, z, t, text, null_text, w):
    rows = [
        _both(network, z[i : i + 1], t[i : i + 1], text[i : i + 1], null_text)
        for i in range(len(z))
    ]
    return torch.cat([guide(*row, w) for row in rows])


@wrong(check.guidance, "w = 0 ignores the caption")
def off_at_zero(network, z, t, text, null_text, w):
    if w == 0:
        return network(z, t, text)
    return guide(*_both(network, z, t, text, null_text), w)


@wrong(check.guidance, "larger than twice the images")
def three_batches(network, z, t, text, null_text, w):
    texts = torch.cat([text, null_text.expand_as(text), text])
    cond, uncond, _ = network(z.repeat(3, 1, 1, 1), t.repeat(3), texts).chunk(3)
    return guide(cond, uncond, w)


# --- 4.6 ------------------------------------------------------------------------------------------

NUMBERS = itertools.count()


def _bag(text):
    return sorted(text.replace(",", " ,").split())


def _wordings(first, second):
    """Captions of both with the same number: often, but not always, of the same words."""
    return list(zip(phrasings(first), phrasings(second), strict=True))


def _pairs(count, seed, places=0.5, draw=None, one_wording=False):
    """Good pairs, unless told otherwise; places: the share that change places."""
    rng, pairs = random.Random(seed), {}
    while len(pairs) < count:
        first = (draw or (lambda rng: sample_description(FULL, rng, objects=2)))(rng)
        a, b = first.objects
        swapped = (replace(a, colour=b.colour), replace(b, colour=a.colour))
        if a.colour == b.colour or swapped == (b, a):
            continue
        second = replace(first, objects=(b, a) if rng.random() < places else swapped)
        both = _wordings(first, second)
        pair = both[0] if one_wording else rng.choice(both)
        if _bag(pair[0]) == _bag(pair[1]):
            pairs[frozenset(pair)] = pair
    return list(pairs.values())


@right(check.swapped)
def mostly_attributes(count, seed):
    return _pairs(count, seed, places=0.3)


@right(check.swapped)
def shuffled_words(count, seed):
    """Search: draw many captions of few attributes, and pair those with the same words."""
    rng, groups = random.Random(f"words {seed}"), {}
    pairs = []
    while len(pairs) < count:
        relation, wording = rng.choice(RELATIONS), rng.randrange(8)
        colours, shapes = rng.sample(list(COLOURS), 2), rng.sample(FULL.shapes, 2)
        options = []
        for c, s in itertools.product((colours, colours[::-1]), (shapes, shapes[::-1])):
            things = tuple(ObjectDescription(*thing) for thing in zip(s, c, strict=True))
            options.append(phrasings(Description(things, relation))[wording])
        for one, other in itertools.combinations(options, 2):
            if _bag(one) == _bag(other) and (one, other) not in groups:
                groups[one, other] = groups[other, one] = True
                pairs.append([one, other])
    return pairs[:count]


@right(check.swapped)
def sizes_and_shapes_too(count, seed):
    rng, pairs, seen = random.Random(seed), [], set()
    while len(pairs) < count:
        first = sample_description(FULL, rng, objects=2)
        a, b = first.objects
        name = rng.choice(["shape", "colour", "size", "shade", None, None])
        moved = ("shape", "colour", "size", "shade") if name is None else (name,)
        both = [(getattr(a, part), getattr(b, part)) for part in moved]
        if all(None in two or two[0] == two[1] for two in both):
            continue  # one image might show both captions
        if name is None:
            things = b, a
        else:
            things = (
                replace(a, **{name: getattr(b, name)}),
                replace(b, **{name: getattr(a, name)}),
            )
        second = replace(first, objects=things)
        if any(thing.shape in UNTILTED and thing.tilt for thing in things):
            continue
        pair = rng.choice(_wordings(first, second))
        if _bag(pair[0]) == _bag(pair[1]) and not {pair, pair[::-1]} & seen:
            seen.add(pair)
            pairs.append(pair)
    return pairs


@right(check.swapped)
def grey_backgrounds_only(count, seed):
    def draw(rng):
        return replace(sample_description(FULL, rng, objects=2), background="grey")

    return tuple(_pairs(count, seed, draw=draw))


@wrong(check.swapped, "do not have the same words")
def another_relation(count, seed):
    pairs = []
    for one, _ in _pairs(count, seed, one_wording=True):
        other = one.replace("left of", "right of").replace("above", "below")
        pairs.append((one, other))
    return pairs


@wrong(check.swapped, "do not have the same words")
def articles_not_counted(count, seed):
    rng, pairs = random.Random(seed), []
    while len(pairs) < count:
        first = sample_description(FULL, rng, objects=2)
        a, b = first.objects
        if a.colour != b.colour and a.shape != b.shape:
            swapped = replace(a, colour=b.colour), replace(b, colour=a.colour)
            pairs.append(_wordings(first, replace(first, objects=swapped))[0])
    return pairs


@wrong(check.swapped, "both captions of a pair say the same")
def the_same_twice(count, seed):
    return [(one, one) for one, _ in _pairs(count, seed)]


@wrong(check.swapped, "one image can show both captions")
def open_sizes(count, seed):
    pairs = _pairs(count - 1, seed)
    return [("a small red star above a red star", "a red star above a small red star"), *pairs]


@wrong(check.swapped, "one image can show both captions")
def open_tilts_and_shades(count, seed):
    one, other = "a tilted red star", "a dark red star"
    return [(f"{one} above {other}", f"{other} above {one}"), *_pairs(count - 1, seed)]


@wrong(check.swapped, "a pair comes more than once")
def drawn_with_repetition(count, seed):
    pairs = _pairs(count // 2 + 1, seed)
    return (pairs + pairs)[:count]


@wrong(check.swapped, "in the other order are the same pair")
def twice_in_the_other_order(count, seed):
    pairs = _pairs(count // 2 + 1, seed)
    return (pairs + [pair[::-1] for pair in pairs])[:count]


@wrong(check.swapped, "worded alike")
def one_wording(count, seed):
    return _pairs(count, seed, one_wording=True)


@wrong(check.swapped, "attribute binding")
def places_only(count, seed):
    return _pairs(count, seed, places=1.0)


@wrong(check.swapped, "in each other's places")
def attributes_only(count, seed):
    return _pairs(count, seed, places=0.0)


@wrong(check.swapped, "not all relations")
def left_and_right_only(count, seed):
    def draw(rng):
        return replace(sample_description(FULL, rng, objects=2), relation="left of")

    return _pairs(count, seed, draw=draw)


@wrong(check.swapped, "not all colours")
def three_colours(count, seed):
    def draw(rng):
        while True:
            found = sample_description(FULL, rng, objects=2)
            if {thing.colour for thing in found.objects} <= {"red", "green", "blue"}:
                return found

    return _pairs(count, seed, draw=draw)


@wrong(check.swapped, "there is nothing to mix up")
def single_objects(count, seed):
    return [(f"a {a} circle", f"one {a} circle") for a in COLOURS] * 40


@wrong(check.swapped, "in its own wording")
def articles_by_hand(count, seed):
    return [tuple(re.sub(r"\ban ", "a ", text) for text in pair) for pair in _pairs(count, seed)]


@wrong(check.swapped, "no caption of the shapes world")
def words_shuffled(count, seed):
    rng, pairs = random.Random(seed), []
    for one, _ in _pairs(count, seed):
        words = one.split()
        pairs.append((one, " ".join(rng.sample(words, len(words)))))
    return pairs


@wrong(check.swapped, "the same seed should give the same pairs")
def without_the_seed(count, seed):
    return _pairs(count, f"{seed} {next(NUMBERS)}")


@wrong(check.swapped, "another seed should give other pairs")
def always_the_same(count, seed):
    return _pairs(count, 0)


@wrong(check.swapped, "count pairs are due")
def one_too_few(count, seed):
    return _pairs(count, seed)[1:]


@wrong(check.swapped, "pairs of captions is due")
def flat_list(count, seed):
    return [text for pair in _pairs(count, seed) for text in pair][:count]
