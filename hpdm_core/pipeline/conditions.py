"""Requests (one per video), and their encoding as the network's conditions.

Axis legend: `n` tokens, `d` width.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hpdm_core.data.text_encoder import TextEncoder
from hpdm_core.data.text_store import pad_tokens, read_text_index
from hpdm_core.errors import DataError, HpdmError, did_you_mean
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import NO_CLASS, Condition

DEFAULT_NUM = 8
MOST_DIGITS = 9  # of a class index


@dataclass(frozen=True, kw_only=True)
class Request:
    """One requested video.

    Args:
        index: position among all requests.
        seed: of its noise.
        label: class index, or None.
        class_name: name of that class, or None.
        prompt: text, or None.
    """

    index: int
    seed: int
    label: int | None = None
    class_name: str | None = None
    prompt: str | None = None

    @property
    def stem(self) -> str:
        """File name without a suffix: index, class or prompt, seed."""
        name = self.class_name or self.prompt or "video"
        shown = re.sub(r"[^A-Za-z0-9]+", "-", name)[:40].strip("-")
        if shown != name.replace(" ", "-"):  # others may look the same
            shown += f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return f"{self.index:05d}_{shown}_seed{self.seed}"

    @property
    def caption(self) -> str:
        """One line of text."""
        return f"seed {self.seed}: {self.class_name or self.prompt or 'unconditional'}"


def make_requests(
    recipe: Recipe,
    known: Sequence[str],
    *,
    classes: Sequence[str | int],
    prompts: Sequence[str],
    seeds: Sequence[int] | None,
    edited: bool = False,
) -> list[Request]:
    """Return a request per video.

    Args:
        recipe: of the model.
        known: its class names.
        classes: names or indices, one for all videos or one for each; none: all in turn.
        prompts: texts, one for all videos or one for each.
        seeds: one per video; None counts from 0, one for each class or prompt asked for, else
            one for each class the model knows, up to 16, or 8.
        edited: videos are made from a given one: where no class is asked for, one without class.

    Raises:
        HpdmError: unknown class, unsupported condition, or numbers that do not agree.
    """
    kind = recipe.model.conditioning
    if classes and prompts:
        raise HpdmError("a model takes classes or prompts", got="both", remedy="leave one out")
    taken = {"class": "classes", "text": "prompts"}.get(kind, "neither classes nor prompts")
    for given, needed in ((classes, "class"), (prompts, "text")):
        if given and kind != needed:
            raise HpdmError(
                "a class is asked for" if given is classes else "a prompt is given",
                got=f"a model conditioned on {kind}",
                expected=f"one conditioned on {needed}",
                remedy=f"this one takes {taken}; `hpdm sample --list` shows what others take",
            )
    if kind == "text" and not prompts:
        raise HpdmError(
            "this model is conditioned on text", got="no prompt", expected="--prompt, or prompts="
        )
    labels = [class_index(name, known) for name in classes]
    asked = len(labels) or len(prompts)
    if seeds is None:
        seeds = range(asked or (1 if edited else default_count(known)))
    if asked not in (0, 1, len(seeds)) or not len(seeds):
        raise HpdmError(
            "seeds and classes or prompts do not agree",
            got=f"{len(seeds)} seeds for {asked} of them",
            expected="one for all videos, or one for each seed",
        )
    if kind == "class" and not labels and not edited:
        labels = [i % len(known) for i in range(len(seeds))]
    requests = []
    for i, seed in enumerate(seeds):
        label = labels[i % len(labels)] if labels else None
        requests.append(
            Request(
                index=i,
                seed=int(seed),
                label=label,
                class_name=None if label is None else known[label],
                prompt=prompts[i % len(prompts)] if prompts else None,
            )
        )
    return requests


def default_count(known: Sequence[str]) -> int:
    """Return the default number of videos: one per class if they are few, else 8."""
    return len(known) if 0 < len(known) <= 2 * DEFAULT_NUM else DEFAULT_NUM


class Conditions:
    """Encodes requests as conditions; each prompt is encoded once.

    Args:
        recipe: of the model.
        prompts: all prompts of the requests, in any order; none for models without text.
        text_encoder: name or folder; None uses that of the training data.
        device: where the network is.

    Raises:
        DataError: no text encoder that fits.
    """

    def __init__(
        self,
        recipe: Recipe,
        prompts: Sequence[str],
        *,
        text_encoder: str | None,
        device: torch.device,
    ) -> None:
        self._device, self._by_class = device, recipe.model.conditioning == "class"
        self._texts: dict[str, torch.Tensor] = {}
        if recipe.model.conditioning == "text":
            prompts = sorted(set(prompts))
            # On the CPU: it never shares the device's memory with the network.
            encoder = TextEncoder(_encoder_name(recipe, text_encoder), device=torch.device("cpu"))
            if encoder.width != recipe.model.condition_width:
                raise DataError(
                    f"text encoder {encoder.name} does not fit the model",
                    got=f"tokens of width {encoder.width}",
                    expected=f"{recipe.model.condition_width}",
                    remedy="give the text encoder of the training data",
                )
            self._texts = dict(zip(prompts, encoder.encode(prompts), strict=True))
        self._longest = max((len(tokens) for tokens in self._texts.values()), default=0)

    def of(self, requests: Sequence[Request]) -> Condition:
        """Return one row per request, on the device."""
        labels, text, mask = None, None, None
        if requests[0].label is not None:
            labels = torch.tensor([request.label for request in requests])
        elif self._by_class:
            labels = torch.full((len(requests),), NO_CLASS)
        if self._texts:
            tokens = [self._texts[request.prompt] for request in requests]
            text, mask = pad_tokens(tokens, self._longest)
            text = text.float()
        return Condition(labels=labels, text=text, text_mask=mask).to(self._device)


def class_index(name: str | int, known: Sequence[str]) -> int:
    """Return the index of a class, given by name (case-insensitive) or index.

    Raises:
        HpdmError: unknown class.
    """
    text = str(name)
    by_name = {known_name.lower(): index for index, known_name in enumerate(known)}
    if text.lower() in by_name:
        return by_name[text.lower()]
    if text.isdecimal() and len(text) <= MOST_DIGITS and int(text) < len(known):
        return int(text)
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    raise HpdmError(
        "this model does not know the class",
        got=ascii(name)[:60],
        expected=f"an index below {len(known)}, or one of {listed}",
        remedy=did_you_mean(text, known),
    )


def _encoder_name(recipe: Recipe, given: str | None) -> str:
    if given is not None:
        return given
    folder = Path(recipe.data.root) / recipe.data.name
    index = read_text_index(folder)
    if index is None:
        raise DataError(
            f"{folder} does not say which text encoder its captions were embedded with",
            remedy="name one: --text-encoder, or text_encoder= in Python",
        )
    return index.encoder
