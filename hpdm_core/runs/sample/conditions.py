"""What `hpdm sample` is asked for: a request per video, with its seed, and class or prompt."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch

from hpdm_core.data.text_encoder import TextEncoder
from hpdm_core.data.text_store import pad_tokens, read_text_index
from hpdm_core.errors import DataError, HpdmError
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import Condition

DEFAULT_NUM = 8


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video to be made.

    Args:
        index: place among all requests.
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
        """File name without a suffix: place, what it shows, seed."""
        shows = re.sub(r"[^A-Za-z0-9]+", "-", self.class_name or self.prompt or "video")
        return f"{self.index:05d}_{shows[:40].strip('-')}_seed{self.seed}"


def make_requests(
    recipe: Recipe,
    known: Sequence[str],
    *,
    num: int | None,
    seed: int,
    classes: Sequence[str],
    prompts: Sequence[str],
    prompt_file: Path | None,
) -> list[Request]:
    """Spread classes or prompts over the videos by turns, with rising seeds.

    Args:
        recipe: of the model.
        known: its class names.
        num: number of videos; None: one for each class or prompt asked for, else 8 (or one for
            each class, where there are fewer than 17).
        seed: of the first video.
        classes: names or indices; none stands for all.
        prompts: texts.
        prompt_file: a text per line; empty lines are passed over.

    Raises:
        HpdmError: the model does not know what is asked for.
    """
    kind = recipe.model.conditioning
    texts = [*prompts, *_lines(prompt_file)]
    if classes and kind != "class":
        raise HpdmError("--class asks for a class", got=f"a model conditioned on {kind}")
    if texts and kind != "text":
        raise HpdmError("--prompt gives a text", got=f"a model conditioned on {kind}")
    if kind == "text" and not texts:
        raise HpdmError("this model draws what a text says", remedy='give --prompt "..."')
    if num is not None and num < 1:
        raise HpdmError("--num counts videos", got=num, expected="at least 1")
    labels = [_label(name, known) for name in classes]
    if kind == "class" and not labels:
        labels = list(range(len(known)))
    asked = len(texts) or len(classes)
    count = num or asked or (len(known) if 0 < len(known) <= 2 * DEFAULT_NUM else DEFAULT_NUM)
    return [
        Request(
            index=i,
            seed=seed + i,
            label=labels[i % len(labels)] if labels else None,
            class_name=known[labels[i % len(labels)]] if labels else None,
            prompt=texts[i % len(texts)] if texts else None,
        )
        for i in range(count)
    ]


class Conditions:
    """Turns requests into what the network reads; a prompt is encoded once.

    Args:
        recipe: of the model.
        requests: all of them.
        text_encoder: name or folder; None takes that of the training data.
        device: where the network is.

    Raises:
        DataError: prompts, but no text encoder that fits.
    """

    def __init__(
        self,
        recipe: Recipe,
        requests: Sequence[Request],
        *,
        text_encoder: str | None,
        device: torch.device,
    ) -> None:
        self._device = device
        self._texts: dict[str, torch.Tensor] = {}
        if recipe.model.conditioning == "text":
            prompts = sorted({request.prompt for request in requests})
            # On the CPU: it never shares the device's memory with the network.
            encoder = TextEncoder(_encoder_name(recipe, text_encoder), device=torch.device("cpu"))
            if encoder.width != recipe.model.condition_width:
                raise DataError(
                    f"text encoder {encoder.name} does not fit the model",
                    got=f"tokens of width {encoder.width}",
                    expected=f"{recipe.model.condition_width}",
                    remedy="give --text-encoder as it was for the training data",
                )
            self._texts = dict(zip(prompts, encoder.encode(prompts), strict=True))
        self._longest = max((len(tokens) for tokens in self._texts.values()), default=0)

    def of(self, requests: Sequence[Request]) -> Condition:
        """Return one row per request, on the device."""
        labels, text, mask = None, None, None
        if requests[0].label is not None:
            labels = torch.tensor([request.label for request in requests])
        if self._texts:
            tokens = [self._texts[request.prompt] for request in requests]
            text, mask = pad_tokens(tokens, self._longest)
            text = text.float()
        return Condition(labels=labels, text=text, text_mask=mask).to(self._device)


def _encoder_name(recipe: Recipe, given: str | None) -> str:
    if given is not None:
        return given
    folder = Path(recipe.data.root) / recipe.data.name
    index = read_text_index(folder)
    if index is None:
        raise DataError(
            f"{folder} does not say which text encoder its captions were embedded with",
            remedy="give --text-encoder NAME or PATH",
        )
    return index.encoder


def _label(name: str, known: Sequence[str]) -> int:
    by_name = {text.lower(): index for index, text in enumerate(known)}
    if name.lower() in by_name:
        return by_name[name.lower()]
    if name.isdigit() and int(name) < len(known):
        return int(name)
    near = get_close_matches(name.lower(), by_name, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(known[by_name[n]] for n in near)}?" if near else ""
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    raise HpdmError(
        "this model does not know the class",
        got=repr(name),
        expected=f"an index below {len(known)}, or one of {listed}",
        remedy=hint or None,
    )


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    if not path.is_file():
        raise DataError("no prompt file", got=path, expected="a text file with a prompt per line")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]
