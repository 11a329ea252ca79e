"""Pre-training of ``t5_tiny``, the small T5 that ships with MinImagen, by span corruption.

    python -m minimagen.training.t5_tiny --OUTPUT t5_tiny --MINUTES 6

Span corruption (T5, arXiv 1910.10683, sec. 3.1.4) hides spans of a text behind sentinels
``<extra_id_0>``, ... and has a decoder say what was there. On captions alone it would teach nothing
about binding, which colour belongs to which object: their attributes are independent, there is
nothing to predict one from another. So a line of this corpus tells one scene in several ways,

    a red circle left of a blue square. right: blue square. left: red circle. square place right.

and hides attributes of one telling, or the whole of it, which another telling gives away. To fill
them in, the encoder must know who has which attribute and stands where. The U-Net later sees a
single caption, so in four of five batches the encoder sees a single telling too, and the decoder
says all of another. Only answers count in the loss, the words that the scene decides.

Towards the end one in three of these batches lets the decoder see only the mean of the embeddings,
and one in three a random half of them: a bottleneck as in TSDAE (arXiv 2104.06979), so that every
embedding knows the scene around it. Scenes with held-out combinations never occur. Only the encoder
is kept.
"""

from __future__ import annotations

import argparse
import io
import math
import random
import re
import string
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer
from transformers.models.t5.modeling_t5 import T5Stack

from minimagen.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    FULL,
    RADII,
    SHAPES,
    Description,
    caption,
    sample_description,
)
from minimagen.text import T5Encoder, load_text_encoder

SENTINELS = 16
PLACES = {"left of": ("left", "right"), "above": ("top", "bottom"), None: ("middle",)}
_ATTRIBUTES = re.compile(
    rf"\b(?:{'|'.join((*COLOURS, *SHAPES, *RADII, *BACKGROUNDS))}"
    r"|left|right|top|bottom|middle|above|over|below|under)\b"
)


# --- the corpus -----------------------------------------------------------------------------------


def roles(description: Description, rng: random.Random) -> str:
    """The scene as a list: ``left: small red circle. right: blue square. background: grey.``"""
    said = []
    for role, thing in zip(PLACES[description.relation], description.objects, strict=True):
        words = [word for word in (thing.size, thing.colour, thing.shape) if word]
        said.append(f"{role}: {' '.join(words)}.")
    if description.background:
        said.append(f"background: {description.background}.")
    rng.shuffle(said)
    return " ".join(said)


def facts(description: Description, rng: random.Random) -> str:
    """Some single facts of the scene: ``left colour red. square place right. red shape circle.``

    Each asks before it answers: the first two words decide the third. An object is referred to by
    its place, or by an attribute that the other one does not have. All places are told, and three
    facts more: places are the hardest to learn.
    """
    places, others = [], []
    things = description.objects
    for place, thing in zip(PLACES[description.relation], things, strict=True):
        said = {"place": place, "colour": thing.colour, "shape": thing.shape, "size": thing.size}
        names = {"place": place}
        if all(other.colour != thing.colour for other in things if other is not thing):
            names["colour"] = thing.colour
        if all(other.shape != thing.shape for other in things if other is not thing):
            names["shape"] = thing.shape
        for known, name in names.items():
            for asked, answer in said.items():
                if answer and asked != known:
                    (places if asked == "place" else others).append(f"{name} {asked} {answer}.")
    if description.background:
        others.append(f"background colour {description.background}.")
    told = places + rng.sample(others, k=3)
    rng.shuffle(told)
    return " ".join(told)


def telling(description: Description, rng: random.Random) -> str:
    """One of the ways to tell a scene."""
    way = rng.randrange(3)
    if way == 0:
        return caption(description, rng) + "."
    return roles(description, rng) if way == 1 else facts(description, rng)


def corrupt(text: str, share: float, rng: random.Random, first: int = 0) -> tuple[str, str]:
    """Hide ``share`` of the attributes of ``text``: (text with sentinels, what was behind them)."""
    hidden: list[str] = []

    def hide(match: re.Match[str]) -> str:
        number = first + len(hidden)
        if rng.random() >= share or number >= SENTINELS:
            return match.group()
        hidden.append(f"<extra_id_{number}> {match.group()}")
        return f"<extra_id_{number}>"

    return _ATTRIBUTES.sub(hide, text), " ".join(hidden)


def single_caption(rng: random.Random) -> tuple[str, str]:
    """An example (encoder's text, decoder's text) of a caption whose retelling is all hidden."""
    description = sample_description(FULL, rng, objects=rng.choice((1, 2, 2, 2)))
    tell = rng.choice((caption, caption, caption, roles))
    text = tell(description, rng)
    if rng.random() < 0.25:
        text += " <extra_id_0>"
    retell = rng.choice((roles, facts))
    return text, "<extra_id_0> " + retell(description, rng)


def corrupted_line(rng: random.Random) -> tuple[str, str]:
    """An example of a line of several tellings, most attributes of one of them hidden."""
    description = sample_description(FULL, rng, objects=rng.choice((1, 2, 2, 2)))
    plain = caption(description, rng)
    source, target = corrupt(telling(description, rng), 0.4, rng)
    # the plain telling keeps its words but for a few, which the other one may give away
    plain, more = corrupt(plain, 0.1, rng, first=target.count("<extra_id_"))
    return f"{plain}. {source}", f"{target} {more}".strip() or "<extra_id_0>"


# --- the model ------------------------------------------------------------------------------------


def make_tokenizer(directory: Path, rng: random.Random) -> None:
    """Train a SentencePiece unigram model on the corpus, as ``spiece.model`` in ``directory``.

    The words of the corpus become whole pieces; letters, digits and punctuation are pieces too, so
    that any English text is encoded. Upper and lower case are the same.
    """
    import sentencepiece

    lines = [" ".join(single_caption(rng)) for _ in range(5000)]
    lines = [re.sub(r"<extra_id_\d+>", "", line) for line in lines]
    words = sorted({word for line in lines for word in re.findall("[a-z]+", line)})
    # a piece must occur in two different surroundings to be a candidate
    lines += [" ".join(word + mark for word in words for mark in ("", *".,:;!?-"))] * 300
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=300,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc_cf",  # Unicode normal form with case folding
        required_chars=string.ascii_lowercase + string.digits + string.punctuation,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (directory / "spiece.model").write_bytes(model.getvalue())


def _look_around(model: T5ForConditionalGeneration) -> None:
    """Let the four heads start out looking around: at the next tokens, or at all on one side.

    Binding starts with who stands next to whom and in which order. From T5's own start, where all
    tokens look alike from everywhere, the loss stays for long at what a bag of words can tell.
    """

    def bias(stack: T5Stack) -> Tensor:  # (distances, heads)
        return stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight

    with torch.no_grad():
        encoder = bias(model.encoder)
        back, ahead = encoder.chunk(2)  # first the distances to tokens before, then after
        back[1, 0] += 4
        ahead[1, 1] += 4
        back[1:, 2] += 3
        ahead[1:, 3] += 3
        for head in range(3):
            bias(model.decoder)[head, head] += 4  # the last token, the one before, ...


def pretrain(
    directory: Path,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
) -> Iterator[tuple[int, float]]:
    """Make a tokenizer, pre-train a T5, save its encoder; yields (step, loss) on the way.

    directory:  gets config.json, model.safetensors, spiece.model and tokenizer files
    steps:      optimizer steps; or
    minutes:    the time to train for, over which the learning rate falls to 0

    Raises ValueError unless exactly one of ``steps`` and ``minutes`` is given.
    """
    if (steps is None) == (minutes is None):
        raise ValueError("give either steps or minutes of pre-training, not both or none")
    rng = random.Random(seed)
    torch.manual_seed(seed)
    directory.mkdir(parents=True, exist_ok=True)
    make_tokenizer(directory, rng)
    tokenizer = T5Tokenizer.from_pretrained(directory, extra_ids=SENTINELS)
    tokenizer.save_pretrained(directory)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=4,
        num_decoder_layers=1,  # a weak decoder: the encoder must do the work
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        feed_forward_proj="relu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    _look_around(model)
    words = (*COLOURS, *SHAPES, *RADII, *BACKGROUNDS, *sum(PLACES.values(), ()))
    answers = torch.tensor(tokenizer.convert_tokens_to_ids([f"▁{word}" for word in words]))
    asks = ("▁colour", "▁shape", "▁size", "▁place", ":")
    asks = torch.tensor(tokenizer.convert_tokens_to_ids(asks))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)

    start, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        alone = step % 5 > 0
        make = single_caption if alone else corrupted_line
        sources, targets = zip(*(make(rng) for _ in range(batch_size)), strict=True)
        source = tokenizer(list(sources), padding=True, return_tensors="pt")
        target = tokenizer(list(targets), padding=True, return_tensors="pt").input_ids
        # only answers are counted, what the scene decides: red in "left colour red"
        question = torch.isin(target.roll(-1, dims=1), asks)  # left in "left: red"
        labels = target.where(torch.isin(target, answers) & ~question, -100)  # (B, M)
        heard = target.roll(1, dims=1)  # what the decoder has before each label
        heard[:, 0] = config.decoder_start_token_id

        states = model.encoder(**source).last_hidden_state  # (B, N, 64)
        mask = source.attention_mask  # (B, N)
        # the decoder sees all embeddings or, late, 1 their mean, 2 a random half
        sees = step // 2 % 3 if alone and done > 0.6 else 0
        if sees == 1:
            weights = mask / mask.sum(1, keepdim=True)
            states, mask = torch.einsum("bnd,bn->bd", states, weights)[:, None], mask[:, :1]
        elif sees == 2:
            kept = mask * (torch.rand(mask.shape) < 0.5)
            mask = torch.where(kept.sum(1, keepdim=True) > 0, kept, mask)
        loss = model(
            encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=heard, labels=labels
        ).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        step += 1
        done = step / steps if steps else (time.monotonic() - start) / (60 * minutes)
        yield step, loss.item()

    encoder = T5EncoderModel(config)
    encoder.load_state_dict(model.state_dict(), strict=False)
    encoder.save_pretrained(directory)


# --- what it learnt -------------------------------------------------------------------------------


def _ridge_accuracy(features: Tensor, labels: Tensor, test: Tensor, penalty: float = 1e-2) -> float:
    """Share of right answers, on ``test``, of a linear classifier fitted to the other rows."""
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    x, y = features[~test], torch.nn.functional.one_hot(labels[~test]).double()
    gram = x.T @ x + penalty * len(x) * torch.eye(x.shape[1])
    weights = torch.linalg.solve(gram, x.T @ (y - y.mean(0)))
    answers = (features[test] @ weights + y.mean(0)).argmax(1)
    return (answers == labels[test]).double().mean().item()


def probe(encoder: T5Encoder, count: int = 4000, seed: int = 1) -> dict[str, float]:
    """How well a linear probe reads who has which attribute from the embeddings of captions.

    Closed-form ridge regression on the frozen embeddings of single captions with two objects that
    differ in colour and in shape. Fitted to ``count`` captions without held-out combinations,
    asked about as many in which every caption has one. Returns accuracies in [0, 1]:

    colour word -> role      is its object the left/top or the right/bottom one? (chance 0.50)
    shape word -> colour     the colour of its own object (chance 0.14)
    shape word -> role, colour word -> shape   likewise
    mean -> first colour     the left/top object's, from the mean of all embeddings (the colours
                             are in a bag of words, their order is not: chance 0.50)
    end -> first colour      likewise from the embedding of ``</s>``
    """
    rng = random.Random(seed)
    colours, shapes = list(COLOURS), list(SHAPES)
    descriptions: list[Description] = []
    while len(descriptions) < 2 * count:
        held_out = len(descriptions) >= count
        drawn = sample_description(FULL, rng, held_out, objects=2)
        first, second = drawn.objects
        if first.colour != second.colour and first.shape != second.shape:
            descriptions.append(drawn)
    captions = [caption(description, rng) for description in descriptions]

    found: dict[str, list[Tensor]] = {"colour": [], "shape": [], "mean": [], "end": []}
    for start in range(0, len(captions), 500):
        batch = captions[start : start + 500]
        embeddings, mask = encoder.encode(batch)
        for row, text in enumerate(batch):
            pieces = encoder.tokenizer.tokenize(text)
            words = [piece.lstrip("▁") for piece in pieces]
            objects = descriptions[start + row].objects
            tokens = embeddings[row][mask[row]]
            found["colour"].append(tokens[[words.index(thing.colour) for thing in objects]])
            found["shape"].append(tokens[[words.index(thing.shape) for thing in objects]])
            found["mean"].append(tokens.mean(0))
            found["end"].append(tokens[-1])
    vectors = {name: torch.stack(rows) for name, rows in found.items()}
    colour_of = torch.tensor([[colours.index(o.colour) for o in d.objects] for d in descriptions])
    shape_of = torch.tensor([[shapes.index(o.shape) for o in d.objects] for d in descriptions])
    role_of = torch.tensor([[0, 1]]).expand(len(captions), 2)
    test = torch.arange(len(captions)) >= count  # (captions,)

    def words_to(kind: str, labels: Tensor) -> float:
        return _ridge_accuracy(
            vectors[kind].flatten(0, 1), labels.flatten(), test.repeat_interleave(2)
        )

    return {
        "colour word -> role": words_to("colour", role_of),
        "shape word -> role": words_to("shape", role_of),
        "shape word -> colour": words_to("shape", colour_of),
        "colour word -> shape": words_to("colour", shape_of),
        "mean -> first colour": _ridge_accuracy(vectors["mean"], colour_of[:, 0], test),
        "end -> first colour": _ridge_accuracy(vectors["end"], colour_of[:, 0], test),
    }


def main() -> None:
    """The command line: pre-train, save, probe."""
    parser = argparse.ArgumentParser(description="Pre-train t5_tiny on the captioned shapes.")
    parser.add_argument("--OUTPUT", type=Path, required=True, help="directory to write it to")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--STEPS", type=int, help="steps of pre-training")
    length.add_argument("--MINUTES", type=float, help="minutes of pre-training (6)")
    parser.add_argument("--SEED", type=int, default=0, help="of weights and corpus (0)")
    args = parser.parse_args()
    minutes = args.MINUTES or (None if args.STEPS else 6.0)
    recent: list[float] = []
    for step, loss in pretrain(args.OUTPUT, args.STEPS, minutes, seed=args.SEED):
        recent = [*recent, loss][-60:]
        if step % 100 == 0:
            print(f"step {step}: loss {sum(recent) / len(recent):.3f}", flush=True)
    for name, accuracy in probe(load_text_encoder(str(args.OUTPUT))).items():
        print(f"{name}: {accuracy:.3f}")


if __name__ == "__main__":
    main()
