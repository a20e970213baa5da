"""A tiny text encoder with random weights: for tests, and to try text-to-video offline.

    python -m hpdm_core.data.tiny_text_encoder captions.jsonl ./tiny-t5

Its tokenizer (byte-level BPE, so no text is unknown) is learned from the captions; its T5 has
random weights, fixed by the seed. Texts with words in common get tokens in common, and texts that
differ get other tokens: enough to distinguish captions, without any semantics. Use a
trained encoder for anything else.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from hpdm_core.data.captions import plan_captions
from hpdm_core.data.plan import DecodingOptions
from hpdm_core.errors import DataError

PAD, END = "<pad>", "</s>"


def make_tiny_encoder(
    folder: Path,
    captions: Sequence[str],
    *,
    width: int = 64,
    layers: int = 2,
    vocabulary: int = 1024,
    seed: int = 0,
) -> None:
    """Write an encoder for `hpdm prep captions --text-encoder FOLDER`.

    Args:
        folder: for config, weights and tokenizer.
        captions: texts that the tokenizer is learned from.
        width: of the embeddings; a multiple of 16.
        layers: of the encoder.
        vocabulary: maximum size of the tokenizer's vocabulary.
        seed: of the weights.
    """
    from transformers import T5Config, T5EncoderModel

    tokenizer = _learn_tokenizer(captions, vocabulary)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=width // 16,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5EncoderModel(config)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _learn_tokenizer(captions: Sequence[str], vocabulary: int):
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import TemplateProcessing
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(captions)), trainer)
    # As in T5: an end token, so that the empty text has a token too.
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def main() -> None:
    """Make an encoder for a list of captions."""
    parser = argparse.ArgumentParser(description="Make a tiny text encoder for a list of captions.")
    parser.add_argument("source", type=Path, help="the .jsonl or .csv for `hpdm prep captions`")
    parser.add_argument("folder", type=Path, help="output folder")
    parser.add_argument("--width", type=int, default=64, help="width of the embeddings")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    args = parser.parse_args()
    plan = plan_captions(
        args.folder, name="", source=args.source, options=DecodingOptions(), workers=None
    )
    captions = [
        text for video in plan.videos if video.caption
        for text in (video.caption, *video.more_captions)
    ]  # fmt: skip
    make_tiny_encoder(args.folder, captions, width=args.width, seed=args.seed)
    print(f"{args.folder}: a T5 of width {args.width} for {len(set(captions))} captions")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(str(error)) from None
