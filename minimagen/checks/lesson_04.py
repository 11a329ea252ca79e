"""Checks of the exercises of lesson 04, text conditioning."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimagen.checks.exercise import Inputs, Lesson, Wrong, close, equal, expect, pair_of
from minimagen.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    FULL,
    RELATIONS,
    SHADES,
    SIZES,
    TILTS,
    Description,
    ObjectDescription,
)
from minimagen.data.wording import OTHER_WORDS, TOGETHER, parse_caption, phrasings

lesson = Lesson(4)
progress = lesson.progress

PRECISIONS = (torch.float32, torch.float64)


# --- 4.1 ------------------------------------------------------------------------------------------


def _padded(rows: Sequence[Tensor], left: bool = False) -> tuple[Tensor, Tensor]:
    """Text (B, N, D) and mask (B, N), token by token."""
    longest = max(len(row) for row in rows)
    text = torch.zeros(len(rows), longest, rows[0].shape[1], dtype=rows[0].dtype)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for b, row in enumerate(rows):
        for n, token in enumerate(row):
            place = n + longest - len(row) if left else n
            text[b, place], mask[b, place] = token, True
    return text, mask


def _counts(lengths: Sequence[int], more: int) -> Tensor:
    """The mask of captions that are so many tokens longer than they are."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None] + more


@lesson.exercise(
    "Captions of different lengths in one batch",
    look="section 4 of the lesson: every caption begins at the first place, zeros fill it up to "
    "the longest, and the mask is True for tokens",
)
def padding(answer: Callable[[list[Tensor]], tuple[Tensor, Tensor]]) -> None:
    """answer(rows) -> (text, mask); rows: B tensors (n_i, D), text (B, N, D), mask (B, N) bool."""
    inputs = Inputs(401)
    cases = (((3, 1, 5), 4), ((2,), 3), ((1, 4, 4, 2), 1), ((2, 2), 5), ((7, 70), 2))
    for dtype in (*PRECISIONS, torch.float16):
        for lengths, width in cases:
            rows = [inputs.normal(n, width, dtype=torch.float32).to(dtype) for n in lengths]
            rows[0][-1] = 0  # a token may well be zero
            given = list(rows)
            pair = answer(given)
            pair_of(
                pair,
                "two tensors are due, the embeddings and the mask: return text, mask",
            )
            expect(
                len(given) == len(rows) and all(a is b for a, b in zip(given, rows, strict=True)),
                "your function changed the list that it was given; build a new one",
            )
            text, mask = pair
            case = f"captions of {', '.join(map(str, lengths))} tokens, {width} numbers each"
            full, counts = _padded(rows)
            repeated = torch.stack(
                [torch.cat([r, r[-1:].expand(full.shape[1] - len(r), -1)]) for r in rows]
            )
            equal(
                text,
                full,
                "each row of the batch should hold the tokens of its own caption, in their order, "
                "then zeros up to the length of the longest caption of the batch",
                {
                    "the two are swapped: first the text, then the mask": counts.to(dtype),
                    "the batch has to come first: (B, N, D), not (N, B, D) (pad_sequence wants "
                    "batch_first=True)": full.transpose(0, 1),
                    "the tokens stand at the end of the row, and the padding before them; the "
                    "padding belongs behind": _padded(rows, left=True)[0],
                    "the long captions were cut to the length of the shortest: words are "
                    "lost": full[:, : min(lengths)],
                    "the padding repeats the last token; fill up with zeros": repeated,
                    "the captions come out in another order (sorted by length?): a caption would "
                    "belong to another one's image": _padded(sorted(rows, key=len))[0],
                    "the captions come out in another order (sorted by length?), the longest "
                    "first: a caption would belong to another one's image": _padded(
                        sorted(rows, key=len)[::-1]
                    )[0],
                },
                case=case,
            )
            expect(isinstance(mask, Tensor), "the mask should be a tensor", f"Tried with:  {case}")
            expect(
                mask.dtype == torch.bool,
                f"the mask holds numbers ({mask.dtype}); it has to be boolean, for ~mask and "
                "masked_fill mean something else for numbers. A comparison gives booleans: "
                "arange < length",
            )
            equal(
                mask,
                counts,
                "the mask should be True at each caption's tokens and False at its padding, "
                "one value a token, (B, N)",
                {
                    "the mask is inverted: True is for tokens, False for padding": ~counts,
                    "a token whose numbers are all 0 is a token too: make the mask from the "
                    "lengths and not from the values": (full != 0).any(-1),
                    "every place counts as a token, the padding too": torch.ones_like(counts),
                    "the mask is for tokens at the end of the row; they stand at its "
                    "beginning": _padded(rows, left=True)[1],
                    "off by one: the last token of each caption does not count": _counts(
                        lengths, -1
                    ),
                    "off by one: the first place of the padding counts too": _counts(lengths, 1),
                },
                case=case,
            )


# --- 4.2 ------------------------------------------------------------------------------------------


def _some(inputs: Inputs, batch: int, length: int) -> Tensor:
    """A mask with at least one True and one False a row, in any places; (batch, length)."""
    keep = inputs.uniform(batch, length) < 0.6
    first, second = inputs.uniform(batch, length).argsort(1)[:, :2].T
    keep[torch.arange(batch), first] = True
    keep[torch.arange(batch), second] = False
    return keep


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bnd,bmd->bnm", q, k)


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The oracle: torch's own, which also takes True for "counts"."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, :])


def _without_sqrt(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> dict[str, Tensor | float]:
    """What is wrong with the scores alone, for any mask."""
    d = q.shape[-1]
    return {
        "the scores are not divided: sqrt(d) is missing, d being the width of q and k": (
            _attended(q * math.sqrt(d), k, v, mask)
        ),
        "the scores are divided by d, where its square root belongs": _attended(
            q / math.sqrt(d), k, v, mask
        ),
        "the scores are multiplied by sqrt(d); they should be divided": _attended(
            q * d, k, v, mask
        ),
        "sqrt(d) is taken of the wrong width: d is that of q and k, not that of v": _attended(
            q * math.sqrt(d / v.shape[-1]), k, v, mask
        ),
        "sqrt(d) is taken of the number of words: d is the width of q and k, the last "
        "dimension": _attended(q * math.sqrt(d / k.shape[1]), k, v, mask),
    }


def _attention_mistakes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> dict[str, Tensor | float]:
    scores, keep = _scores(q, k) / math.sqrt(q.shape[-1]), mask[:, None, :].to(q.dtype)
    every = torch.ones_like(mask)
    return {
        "the mask is ignored: the padding gets a share of the softmax": _attended(q, k, v, every),
        "the mask is inverted: True is for a word that counts; you listen to the padding "
        "only": _attended(q, k, v, ~mask),
        "the mask comes after the softmax: the weights that are left add up to less than 1, for "
        "the padding has taken its share already. Mask the scores": scores.softmax(-1) * keep @ v,
        "the scores of the padding became 0, and e^0 = 1 is no small weight: it takes a score of "
        "minus infinity to have the weight 0": (scores * keep).softmax(-1) @ v,
        "the mask, 1 and 0, is added to the scores: that makes the words e times as loud as the "
        "padding, not infinitely": (scores + keep).softmax(-1) @ v,
        "the padding does not always stand behind the words: use each place of the mask and not "
        "only how many words count": _attended(
            q, k, v, torch.arange(k.shape[1]) < mask.sum(1, keepdim=True)
        ),
        "no softmax: the scores themselves are the weights": scores * keep @ v,
        **_without_sqrt(q, k, v, mask),
    }


def _over_pixels(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> dict[str, Tensor | float]:
    scores, keep = _scores(q, k) / math.sqrt(q.shape[-1]), mask[:, None, :].to(q.dtype)
    words = "the softmax runs over the wrong axis: each pixel shares its attention out among the "
    return {
        f"{words}words, so the weights of one pixel add up to 1 (dim=-1); here it ran over the "
        "pixels": scores.softmax(1) * keep @ v,
        f"{words}words (dim=-1); here it ran over the batch": scores.softmax(0) * keep @ v,
    }


@lesson.exercise(
    "Attention that does not hear the padding",
    look="softmax(q k^T / sqrt(d) + m) v, m_j = 0 or minus infinity; section 5 of the lesson "
    "(1706.03762, eq. 1)",
)
def attention(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """answer(q, k, v, mask) -> (B, N, E); q (B, N, d), k (B, M, d), v (B, M, E), mask (B, M)."""
    inputs = Inputs(422)
    idea = (
        "each pixel should get the mean of v over the words that count, weighted by the softmax of "
        "q k^T / sqrt(d) over these words"
    )
    for dtype in PRECISIONS:
        for batch, n, m, d, e in ((3, 4, 6, 5, 2), (1, 7, 3, 2, 4), (4, 5, 5, 3, 3)):
            q = inputs.normal(batch, n, d, dtype=dtype)
            k, v = inputs.normal(batch, m, d, dtype=dtype), inputs.normal(batch, m, e, dtype=dtype)
            mask, every = _some(inputs, batch, m), torch.ones(batch, m, dtype=torch.bool)
            sizes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
            found = answer(q, k, v, mask)
            if isinstance(found, Tensor) and not bool(found.isfinite().all()):
                # nan: why? With no padding at all, a wrong axis still gives numbers
                full, wanted = answer(q, k, v, every), _attended(q, k, v, every)
                equal(
                    full if bool(full.isfinite().all()) else wanted,
                    wanted,
                    idea,
                    {**_over_pixels(q, k, v, every), **_without_sqrt(q, k, v, every)},
                    case=f"{sizes}, all words count",
                )
                raise Wrong(
                    "nan comes out. 0 times infinity is nan (so do not multiply a mask by "
                    "infinity: masked_fill), and so is the softmax of scores that are all minus "
                    "infinity: put it where the mask is False, along the words",
                    f"Tried with:     {sizes}, some words masked",
                )
            equal(
                found,
                _attended(q, k, v, mask),
                idea,
                {**_attention_mistakes(q, k, v, mask), **_over_pixels(q, k, v, mask)},
                case=f"{sizes}, some words masked",
            )
            equal(
                answer(q, k, v, every),
                _attended(q, k, v, every),
                idea,
                case=f"{sizes}, all words count",
            )
            other = torch.where(mask[..., None], 0, inputs.normal(batch, m, 1, dtype=dtype)) * 9
            equal(
                answer(q, k + other, v - other, mask),
                _attended(q, k, v, mask),
                "the padding has an influence: with other numbers in the masked words of k and v "
                "the result changes",
                case=f"{sizes}, other numbers where the mask is False",
            )
            one = torch.arange(m) == inputs.whole(batch, 1, high=m)
            equal(
                answer(q, k, v, one),
                (v * one[..., None]).sum(1, keepdim=True).expand(-1, n, -1),
                "where only one word counts it has the weight 1, and every pixel gets its v",
                case=f"{sizes}, one word of each caption counts",
            )
    _extreme_scores(answer)
    q, k, v = (inputs.normal(2, 3, 4).requires_grad_() for _ in range(3))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    found, wanted = answer(q, k, v, mask), _attended(q, k, v, mask)
    expect(
        found.requires_grad,
        "no gradient flows back through your function (detach, no_grad, .data?), so nothing could "
        "be learnt",
    )
    for name, a, b in zip(
        "qkv",
        torch.autograd.grad(found.square().sum(), (q, k, v), allow_unused=True),
        torch.autograd.grad(wanted.square().sum(), (q, k, v)),
        strict=True,
    ):
        equal(
            torch.zeros_like(b) if a is None else a,
            b,
            f"the result is right but its gradient with respect to {name} is not, so this would "
            "not train: leave the whole way from q, k, v to the result to torch, nothing detached",
        )


def _extreme_scores(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Scores of plus and of minus several hundred: of the words, and of the padding."""
    inputs = Inputs(412)
    q, v = torch.ones(2, 3, 1, dtype=torch.float64), inputs.normal(2, 4, 5, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True], [False, True, True, False]])
    for words, padding, idea in (
        (
            900,
            0,
            "a score of 900 breaks it: e^900 is too large for any float. Subtract the largest "
            "score before exp, or use softmax, which does just that",
        ),
        (
            -600,
            0,
            "where the words' own scores are low, the padding is heard: a large negative number is "
            "not low enough for its score, it has to be minus infinity",
        ),
        (
            0,
            900,
            "a loud padding takes the whole softmax, and leaves the words no weight that could be "
            "scaled up again: mask the scores, before the softmax (and before you look for the "
            "largest)",
        ),
    ):
        k = (
            inputs.normal(2, 4, 1, dtype=torch.float64)
            + torch.where(mask, words, padding)[..., None]
        )
        equal(
            answer(q, k, v, mask),
            _attended(q, k, v, mask),
            idea,
            case=f"scores near {words}, those of the padding near {padding}",
        )


# --- 4.3 ------------------------------------------------------------------------------------------


def _pooled(queries: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """One query of one caption after the other, its words by a plain sum; (B, Q, D)."""
    rows = []
    for words, counts in zip(text, mask, strict=True):
        kept = words[counts]
        for query in queries:
            weights = torch.softmax(kept @ query / math.sqrt(len(query)), dim=0)
            rows.append(sum(w * word for w, word in zip(weights, kept, strict=True)))
    return torch.stack(rows).reshape(len(text), len(queries), -1)


def _pooling_mistakes(queries: Tensor, text: Tensor, mask: Tensor) -> dict[str, Tensor | float]:
    right, d = _pooled(queries, text, mask), queries.shape[1]
    scores = torch.einsum("qd,bnd->bqn", queries, text) / math.sqrt(d)
    mean = torch.stack([words[counts].mean(0) for words, counts in zip(text, mask, strict=True)])
    low = scores.masked_fill(~mask[:, None], -torch.inf)
    return {
        "the mask is ignored: the padding is pooled too": _pooled(
            queries, text, torch.ones_like(mask)
        ).flatten(1),
        "the mask is inverted: True is for a word that counts": _pooled(
            queries, text, ~mask
        ).flatten(1),
        "the padding is masked after the softmax, so the weights left add up to less than 1: mask "
        "the scores": (scores.softmax(-1) * mask[:, None] @ text).flatten(1),
        "the scores of the padding became 0; only minus infinity has the weight 0": (
            (scores * mask[:, None]).softmax(-1) @ text
        ).flatten(1),
        "the scores are not divided by sqrt(D)": _pooled(
            queries * math.sqrt(d), text, mask
        ).flatten(1),
        "the scores are divided by D, where its square root belongs": _pooled(
            queries / math.sqrt(d), text, mask
        ).flatten(1),
        "the queries are not used: this is the mean of the words": mean.repeat(1, len(queries)),
        "the answers of the queries should stand one behind the other, all numbers of the first "
        "query, then all of the second; here they are interleaved": right.transpose(1, 2).flatten(
            1
        ),
        "the mean over the queries mixes what they have found: keep their answers side by side, "
        "(B, Q * D)": right.mean(1),
        "the sum over the queries mixes what they have found: keep their answers side by side, "
        "(B, Q * D)": right.sum(1),
        "the answers of the queries should become one vector a caption: flatten (B, Q, D) to "
        "(B, Q * D)": right,
        "the softmax runs over the queries: it should share each query's attention out among the "
        "words (dim=-1)": (low.softmax(1).nan_to_num() @ text).flatten(1),
    }


@lesson.exercise(
    "A caption as one vector",
    look="pooled_j = softmax(p_j h^T / sqrt(D)) h over the words that count; section 7 of the "
    "lesson, road 1",
)
def pooling(answer: Callable[[int, int], nn.Module]) -> None:
    """answer(dim, queries) -> module; module(text, mask) -> (B, queries * dim); see the card."""
    inputs = Inputs(403)
    digits = 2e-5  # in both precisions: a module is born in float32, with the constants that it has
    for dtype in PRECISIONS:
        for batch, n, dim, queries in ((3, 6, 4, 2), (1, 7, 3, 4), (5, 5, 5, 5), (2, 3, 2, 1)):
            module = _new_pool(answer, dim, queries).to(dtype)
            text, mask = inputs.normal(batch, n, dim, dtype=dtype), _some(inputs, batch, n)
            case = f"text {tuple(text.shape)}, {queries} queries"
            before = text.clone(), mask.clone()
            for size, idea in (
                (
                    0.0,
                    "with queries of 0 all scores are equal, so each query should give the mean of "
                    "the words that count",
                ),
                (
                    1.5,
                    "each query should give the mean of the words that count, weighted by the "
                    "softmax of p_j h^T / sqrt(D); keys and values are the words themselves",
                ),
            ):
                p = size * inputs.normal(queries, dim, dtype=dtype)
                module.load_state_dict({"queries": p}, strict=False)
                found = module(text, mask)
                if isinstance(found, Tensor) and not bool(found.isfinite().all()):
                    raise Wrong(
                        "nan comes out. The softmax of scores that are all minus infinity is nan, "
                        "and so is 0 times infinity. Does your softmax run over the words (the "
                        "last axis of the scores), and do you mask with masked_fill?",
                        f"Tried with:     {case}, some words masked",
                    )
                expect(
                    torch.equal(text, before[0]) and torch.equal(mask, before[1]),
                    "your module changed the text or the mask that it was given, in place; the "
                    "other road into the U-Net still needs them",
                )
                equal(
                    found,
                    _pooled(p, text, mask).flatten(1),
                    idea,
                    _pooling_mistakes(p, text, mask) if size else _mean_mistakes(p, text, mask),
                    case=f"{case}, some words masked" + (", all queries 0" * (not size)),
                    tolerance=digits,
                )
            other = torch.where(
                mask[..., None], text, 9 * inputs.normal(batch, n, dim, dtype=dtype)
            )
            equal(
                module(other, mask),
                _pooled(p, text, mask).flatten(1),
                "the padding has an influence: with other numbers in it the vector changes",
                case=f"{case}, other numbers where the mask is False",
                tolerance=digits,
            )
            every = torch.ones_like(mask)
            equal(
                module(text, every),
                _pooled(p, text, every).flatten(1),
                "without any padding the result is wrong",
                case=f"{case}, all words count",
                tolerance=digits,
            )
    module, text = _new_pool(answer, 4, 3), inputs.normal(2, 5, 4)
    found, p = module(text, _some(inputs, 2, 5)).square().sum(), module.get_parameter("queries")
    moved = torch.autograd.grad(found, p, allow_unused=True)[0] if found.requires_grad else None
    expect(
        moved is not None and moved.any(),
        "no gradient reaches the queries (detach, no_grad, .data?), so they would never learn what "
        "to look for",
    )


def _mean_mistakes(p: Tensor, text: Tensor, mask: Tensor) -> dict[str, Tensor | float]:
    """The mistakes that show with queries of 0; some come to the same there."""
    count, keep = len(p), mask[..., None].to(text.dtype)
    return {
        "the mask is ignored: the padding is pooled too": text.mean(1).repeat(1, count),
        "the mask is inverted: True is for a word that counts": (
            (text * (1 - keep)).sum(1) / (1 - keep).sum(1)
        ).repeat(1, count),
        "the weights do not add up to 1: the words that count are added up, but divided by the "
        "number of all places, or masked after the softmax": (text * keep).mean(1).repeat(1, count),
        "the weights do not add up to 1: this is the sum of the words": (
            (text * keep).sum(1).repeat(1, count)
        ),
        "the softmax runs over the queries: it should share each query's attention out among the "
        "words (dim=-1)": (text * keep).sum(1).repeat(1, count) / count,
        "the answers of the queries should stand one behind the other, all numbers of the first "
        "query, then all of the second; here they are interleaved": (
            _pooled(p, text, mask).transpose(1, 2).flatten(1)
        ),
        "the answers of the queries should become one vector a caption: flatten (B, Q, D) to "
        "(B, Q * D)": _pooled(p, text, mask),
        "the mean over the queries mixes what they have found: keep their answers side by side, "
        "(B, Q * D)": _pooled(p, text, mask).mean(1),
    }


def _new_pool(answer: Callable[[int, int], nn.Module], dim: int, queries: int) -> nn.Module:
    """A module of the learner's, with its queries where they should be."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")  # in it torch.empty holds nan
    try:
        module = answer(dim, queries)
    finally:
        torch.set_deterministic_debug_mode(mode)
    expect(isinstance(module, nn.Module), "a torch.nn.Module is due: a class, not a function")
    learned = dict(module.named_parameters())
    p = getattr(module, "queries", None)
    expect(
        "queries" in learned,
        "the queries are not registered, so no optimiser would find them: self.queries has to be "
        "an nn.Parameter; a plain tensor, or a buffer, is not learned"
        if isinstance(p, Tensor)
        else "the module has no parameter of the name queries: in __init__, self.queries = "
        "nn.Parameter(...)",
    )
    expect(
        tuple(learned["queries"].shape) == (queries, dim),
        "the parameter queries should hold one vector of the words' width for each query: "
        "(queries, dim), and no batch: all captions are asked the same questions",
        f"Expected shape: {(queries, dim)}\nFound shape:    {tuple(learned['queries'].shape)}",
    )
    expect(learned["queries"].requires_grad, "the queries should be learned: requires_grad")
    expect(
        list(learned) == ["queries"],
        "nothing but the queries is learned here: keys and values are the words themselves",
        f"Found:          {', '.join(learned)}",
    )
    first = learned["queries"].detach()
    expect(
        first.isfinite().all(),
        "the queries hold whatever was in the memory (torch.empty?): let them start at random "
        "(torch.randn)",
    )
    expect(
        queries == 1 or not bool((first == first[0]).all()),
        "all queries start as the same vector, so all look for the same; let them start at random "
        "(torch.randn)",
    )
    return module


# --- 4.4 ------------------------------------------------------------------------------------------

Hide = Callable[[Tensor, Tensor, float, torch.Generator], Tensor]


@lesson.exercise(
    "Hide some captions",
    look="conditioning dropout, section 9 of the lesson: for each image of the batch, with "
    "probability p, every token becomes null_text",
)
def hiding(answer: Hide) -> None:
    """answer(text, null_text, p, generator) -> (B, N, D); text (B, N, D), null_text (D,)."""
    inputs = Inputs(404)
    for dtype in PRECISIONS:
        for batch, n, dim in ((30, 4, 5), (1, 2, 3), (5, 1, 2), (4, 4, 4)):
            text, null = inputs.normal(batch, n, dim, dtype=dtype), inputs.normal(dim, dtype=dtype)
            null_text = null.expand(batch, n, dim).clone()
            way = "the wrong way round: p is the probability that a caption is HIDDEN"
            case = f"text of shape {(batch, n, dim)}"
            equal(
                answer(text, null, 0.0, inputs.generator),
                text,
                "with p = 0 nothing is hidden: the text comes back as it is (a number of "
                "torch.rand is never below 0; one of torch.randn is, every other time)",
                {way: null_text},
                case=f"{case}, p = 0",
                tolerance=0,
            )
            equal(
                answer(text, null, 1.0, inputs.generator),
                null_text,
                "with p = 1 every caption is hidden: null_text stands at each of its places",
                {
                    way: text,
                    "hidden captions are filled with 0; null_text, a learned vector, belongs "
                    "there": torch.zeros_like(text),
                    "null_text is added to the text; it should take its place": text + null,
                    "null_text stands at the first token alone; the other words can still be "
                    "read": torch.cat([null_text[:, :1], text[:, 1:]], dim=1),
                },
                case=f"{case}, p = 1",
                tolerance=0,
            )
    _randomness(answer)
    for p in (0.4, 0.13, 0.92):
        hidden = _hidden(answer, 6000, p, torch.Generator().manual_seed(int(100 * p)))
        _share(hidden, p, f"a batch of 6000 captions, p = {p}")
        for part in (*hidden.chunk(2), hidden[::2], hidden[1::2]):
            place = "whether a caption is hidden depends on its place in the batch; "
            _share(part, p, f"a part of a batch of 6000 captions, p = {p}", place)
        alike, slack = p**2 + (1 - p) ** 2, 5 * 0.5 / math.sqrt(3000)
        for one, other in ((hidden[::2], hidden[1::2]), hidden.chunk(2)):
            expect(
                abs(float((one == other).double().mean()) - alike) < slack,
                "some captions are hidden together: each image's number has to be its own, that "
                "of another one must not tell anything about it",
            )
    generator, p = torch.Generator().manual_seed(5), 0.4
    alone = torch.cat([_hidden(answer, 1, p, generator) for _ in range(800)])
    _share(
        alone, p, f"800 batches of one caption, p = {p}", "each image has to be drawn by itself; "
    )
    text, null = inputs.normal(3, 2, 4), inputs.normal(4).requires_grad_()
    found = answer(text, null, 1.0, inputs.generator)
    expect(
        found.requires_grad,
        "no gradient reaches null_text (detach, no_grad, .data?): it is learned with the network",
    )


def _hidden(answer: Hide, batch: int, p: float, generator: torch.Generator) -> Tensor:
    """Which captions of a batch came back hidden, (B,); each wholly so or not at all."""
    inputs = Inputs(414)
    text, null = inputs.normal(batch, 3, 2), inputs.normal(2)
    found = answer(text, null, p, generator)
    case = f"Tried with:     a batch of {batch}, p = {p}"
    expect(isinstance(found, Tensor) and found.shape == text.shape, "the shape of text is due")
    is_text, is_null = (found == text), (found == null)
    whole, none = is_null.flatten(1).all(1), is_text.flatten(1).all(1)
    if not bool((whole | none).all()):
        if close(torch.where(is_null, text / (1 - p), found), text / (1 - p)):
            raise Wrong(
                "what is kept was divided by 1 - p, as dropout in a network does; captions that "
                "are kept should stay as they are",
                case,
            )
        if bool((is_text | (found == 0)).all()):
            raise Wrong("what is hidden became 0: null_text belongs there", case)
        if bool((is_text.all(2) | is_null.all(2)).all()):
            raise Wrong(
                "single tokens are hidden, and the rest of the caption can still be read: draw one "
                "number for each image, (B,), and hide all of its tokens or none",
                case,
            )
        if bool((is_text | is_null).all()):
            raise Wrong(
                "single numbers of the vectors are hidden: draw one number for each image, (B,), "
                "and hide its whole caption or nothing of it",
                case,
            )
        raise Wrong(
            "each caption should come out either as it was or hidden as a whole, with null_text at "
            "every place; some of these are neither",
            case,
        )
    return whole


def _share(hidden: Tensor, p: float, case: str, why: str = "") -> None:
    """The share of captions that are hidden, up to five standard deviations."""
    share, slack = float(hidden.double().mean()), 5 * math.sqrt(p * (1 - p) / len(hidden))
    facts = f"Tried with:     {case}\nFound:          {100 * share:.1f} % hidden"
    if len(hidden) > 100 and share in (0, 1) and not why:
        raise Wrong(
            "all captions of a batch are hidden, or none: draw one number for each image and not "
            "one for the batch",
            facts,
        )
    expect(
        abs(share - (1 - p)) > slack or abs(share - p) <= slack,
        "the wrong way round: p is the probability that a caption is HIDDEN",
        facts,
    )
    expect(abs(share - p) <= slack, f"{why}a share of p should be hidden in the long run", facts)


def _randomness(answer: Hide) -> None:
    """The generator alone decides, and goes on from call to call."""
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(7)
        results.append([_hidden(answer, 40, 0.5, generator) for _ in range(2)])
    expect(
        torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1]),
        "the same generator should hide the same captions: your random numbers come from "
        "somewhere else. Pass it on: torch.rand(..., generator=generator)",
    )
    if bool(results[0][0].all()) or not bool(results[0][0].any()):
        _share(results[0][0].repeat(10), 0.5, "a batch of 40 captions, p = 0.5")
    expect(
        not torch.equal(*results[0]),
        "the same captions are hidden in each call: let the generator go on, do not seed it, and "
        "do not copy it",
    )


# --- 4.5 ------------------------------------------------------------------------------------------


class _Network:
    """Stands for a U-Net: each image's answer depends on its own z, t and text, in their order.

    z (B, C, H, W), t (B,), text (B, N, D) -> (B, C, H, W). ``sizes``: the batches it was given.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        lengths = [len(part) for part in (z, t, text)]
        expect(
            len(set(lengths)) == 1 and t.ndim == 1 and text.ndim == 3,
            "the network got z, t and text of different batches: what is doubled has to be doubled "
            "in all three",
            f"Found shapes:   z {tuple(z.shape)}, t {tuple(t.shape)}, text {tuple(text.shape)}",
        )
        self.sizes.append(lengths[0])
        return self.of(z, t, text)

    @staticmethod
    def of(z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        place = torch.arange(1, text.shape[1] + 1, dtype=text.dtype)[:, None]
        said = torch.sin((text * place).sum((1, 2))).reshape(-1, 1, 1, 1)
        return z * t.reshape(-1, 1, 1, 1) + said * (1 + torch.cos(z))


@lesson.exercise(
    "Guidance with one call of the network",
    look="w net(z, t, text) + (1 - w) net(z, t, null), 2205.11487, eq. 2; section 9 of the lesson",
)
def guidance(answer: Callable[..., Tensor]) -> None:
    """answer(network, z, t, text, null_text, w) -> guided output, like z; one call for both."""
    inputs = Inputs(405)
    cases = ((3, (3, 4, 6), 5, 2), (1, (1, 3, 2), 4, 3), (4, (3, 4, 4), 4, 4))
    for dtype in PRECISIONS:
        for batch, shape, n, dim in cases:
            z, t = inputs.normal(batch, *shape, dtype=dtype), inputs.uniform(batch, dtype=dtype)
            text, null = inputs.normal(batch, n, dim, dtype=dtype), inputs.normal(dim, dtype=dtype)
            for w in (3, 0.0, 1.0, 7.5, 0.3):
                network = _Network()
                found = answer(network, z, t, text, null, w)
                nothing = null.expand_as(text)
                cond, uncond = network.of(z, t, text), network.of(z, t, nothing)
                zeros = network.of(z, t, torch.zeros_like(text))
                mixed = network.of(z, t, w * text + (1 - w) * nothing)
                both, texts = torch.cat([cond, uncond]), torch.cat([text, nothing])
                crossed = network.of(z.repeat_interleave(2, 0), t.repeat_interleave(2), texts)
                mistakes = {
                    "the answers with and without the caption are swapped (in the equation, "
                    "or when the doubled batch is taken apart)": w * uncond + (1 - w) * cond,
                    "this is the other convention, (1 + w) cond - w uncond, for which w = 0 is "
                    "off; in the Imagen paper w = 1 is off": (1 + w) * cond - w * uncond,
                    "the answer with the caption is multiplied by w, the one without it is not "
                    "used": w * cond,
                    "w (cond - uncond) alone: this is the step, and the answer without caption "
                    "that it starts from is missing": w * (cond - uncond),
                    "the two answers are added, w cond + uncond: their weights should add up "
                    "to 1, w and 1 - w": w * cond + uncond,
                    "cond - w uncond: the weights should add up to 1, w and 1 - w": cond
                    - w * uncond,
                    "w has no effect: this is the answer with the caption": cond,
                    "this is the answer without the caption": uncond,
                    "without a caption means null_text at every place; here it was 0": w * cond
                    + (1 - w) * zeros,
                    "the texts are mixed, where the network's two ANSWERS should be": mixed,
                    "the doubled batch is put together one half behind the other (cat), but taken "
                    "apart as if the two answers of an image were neighbours": w * both[::2]
                    + (1 - w) * both[1::2],
                    "texts at other images: in z and t an image and its copy are neighbours "
                    "(repeat_interleave), in the texts one half comes behind the other (cat)": w
                    * crossed[:batch]
                    + (1 - w) * crossed[batch:],
                }
                equal(
                    found,
                    uncond + w * (cond - uncond),
                    "the guided answer is w times the one with the caption plus (1 - w) times the "
                    "one without: w = 0 ignores the caption, w = 1 is the answer with it",
                    {} if w in (0, 1) else mistakes,  # there some of them agree
                    case=f"{batch} images of shape {shape}, w = {w}",
                )
                expect(
                    len(network.sizes) == 1,
                    "right, but the network was called more than once: put both questions into one "
                    "batch of twice the size, which on an accelerator takes hardly longer than one",
                    f"Found:          {len(network.sizes)} calls for one answer",
                )
                expect(
                    network.sizes[0] <= 2 * batch,
                    "right, but the batch is larger than twice the images",
                    f"Found:          {network.sizes[0]} for {batch} images",
                )


# --- 4.6 ------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    """A bag of words: sorted; a comma is a word of its own."""
    return sorted(re.findall(r"\w+|[^\w\s]", text))


def _wording(text: str) -> str:
    """A caption without what it says of the objects and the background."""
    more, colours = "|".join((*SIZES, *TILTS, *SHADES, *OTHER_WORDS)), "|".join(COLOURS)
    things = rf"an? (?:(?:{more}) )*(?:{colours}) (?:{'|'.join(FULL.shapes)})"
    behind = rf" (?:on|against) an? (?:{'|'.join((*BACKGROUNDS, *OTHER_WORDS))}) background"
    return re.sub(behind, "", re.sub(things, "*", text))


def _read(text: str) -> Description:
    """What a caption says; ``Wrong`` if it is none of this world."""
    try:
        described = parse_caption(text)
    except ValueError as error:
        raise Wrong(f"this is no caption of the shapes world: {error}") from None
    expect(
        text in phrasings(described),
        "this is no caption of the shapes world, in its own wording (check the articles, a or an): "
        "make captions with phrasings(description), then their grammar is right",
        f"Found:          {text}",
    )
    return described


def _one_image_shows_both(one: Description, other: Description) -> bool:
    """They agree in all that both of them name; what one leaves open, a size, may be any."""

    def said(thing: ObjectDescription) -> tuple[str | None, ...]:
        return thing.shape, thing.colour, thing.size, thing.tilt, thing.shade

    return one.relation == other.relation and all(
        x == y or not (x and y)
        for a, b in zip(one.objects, other.objects, strict=True)
        for x, y in zip(said(a), said(b), strict=True)
    )


def _pair(pair: Any) -> tuple[Description, Description]:
    """What the captions of a pair say, if it is one that the test can use."""
    expect(
        isinstance(pair, (tuple, list))
        and len(pair) == 2
        and all(isinstance(text, str) for text in pair),
        "a list of pairs of captions is due: [(caption, caption), ...]",
        f"Found:          {pair!r}"[:200],
    )
    one, other = _read(pair[0]), _read(pair[1])
    facts = f"Found:          {pair[0]}\n                {pair[1]}"
    expect(
        len(one.objects) == 2 == len(other.objects),
        "each caption should have two objects: with one alone there is nothing to mix up",
        facts,
    )
    expect(pair[0] != pair[1] and one != other, "both captions of a pair say the same", facts)
    first, second = Counter(_words(pair[0])), Counter(_words(pair[1]))
    different = sorted((first - second) + (second - first))
    expect(
        not different,
        "the two captions do not have the same words, so a bag of words tells them apart",
        f"{facts}\nNot in both:    {', '.join(different)}",
    )
    expect(
        not _one_image_shows_both(one, other),
        "one image can show both captions, because a size, a tilt or a shade that a caption does "
        "not name may be any; so a model that draws that image cannot be blamed",
        facts,
    )
    return one, other


@lesson.exercise(
    "Design: captions that a bag of words cannot tell apart",
    look="section 1 of the lesson; sample_description in minimagen.data.shapes, phrasings and "
    "parse_caption in minimagen.data.wording",
)
def swapped(answer: Callable[[int, int], list[tuple[str, str]]]) -> None:
    """answer(count, seed) -> list of pairs of captions: the same words, another image."""
    pairs = answer(300, 0)
    expect(isinstance(pairs, (list, tuple)), "a list of pairs of captions is due")
    said = [_pair(pair) for pair in pairs]
    expect(
        len(pairs) == 300,
        "count pairs are due",
        f"Expected:       300\nFound:          {len(pairs)}",
    )
    for what, wanted, there in (
        ("colours", COLOURS, {thing.colour for two in said for d in two for thing in d.objects}),
        ("shapes", FULL.shapes, {thing.shape for two in said for d in two for thing in d.objects}),
        ("relations", RELATIONS, {d.relation for two in said for d in two}),
    ):
        missing = sorted(set(wanted) - there)
        expect(
            not missing,
            f"not all {what} of the world occur in 300 pairs; a test should cover them all",
            f"Missing:        {', '.join(missing)}",
        )
    wordings = {_wording(text) for pair in pairs for text in pair}
    expect(
        len(wordings) >= 4,
        "the captions are all worded alike: at least 4 of the "
        f"{sum(map(len, TOGETHER.values()))} wordings should occur, or the test knows one "
        "sentence only",
        f"Found:          {'; '.join(sorted(wordings))}",
    )
    moved = [Counter(one.objects) == Counter(other.objects) for one, other in said]
    share = sum(moved) / len(moved)
    facts = f"Found:          {share:.0%} change places, {1 - share:.0%} are other objects"
    expect(
        share >= 0.2,
        "at least a fifth of the pairs should have the very same two objects in each other's "
        "places (which is left?): that a model can get wrong too",
        facts,
    )
    expect(
        share <= 0.8,
        "at least a fifth of the pairs should have other objects, such as a red circle and a blue "
        "square against a blue circle and a red square: which word belongs to which (attribute "
        "binding)",
        facts,
    )
    expect(answer(300, 0) == pairs, "the same seed should give the same pairs: a test is repeated")
    sets = []
    for count, seed in ((40, 1), (40, 2), (1, 3)):
        some = answer(count, seed)
        facts = f"Expected:       {count}\nFound:          {len(some)}"
        expect(len(some) == count, "count pairs are due", facts)
        for pair in some:
            _pair(pair)
        sets.append({frozenset(pair) for pair in some})
    expect(sets[0] != sets[1], "another seed should give other pairs")
    many = Counter(frozenset(pair) for pair in answer(3000, 4))
    twice = [sorted(pair) for pair, times in many.items() if times > 1]
    expect(
        not twice,
        "a pair comes more than once (the two captions in the other order are the same pair)",
        f"Tried with:     3000 pairs\nFound:          {' / '.join(twice[0])}" if twice else "",
    )
