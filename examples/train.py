"""Train a small Qwen3 language model with sliding-window layers from one text file.

Run from the top folder of the project, with torch, transformers and tokenizers installed:

    python examples/train.py --text stories.txt --output stories-5m --minutes 20

The text is any UTF-8 file. The result is a Hugging Face checkpoint folder: config.json, generation_config.json,
model.safetensors in bfloat16, tokenizer.json and tokenizer_config.json. Its shape is that of the bundled model, or of
the config.json that --config names.

Lines of <|endoftext|> alone separate documents; without such a line the file is one document. The last documents, or
the end of the only one, are held out: neither the tokenizer nor the model is trained on them.

A run with --steps is repeatable: the same text, options, thread count and package versions give the same weights on
the same machine. A run with --minutes is not, since the number of steps depends on the speed.

Exit code: 0 when the checkpoint is saved, 1 when the training diverges, 2 for bad input, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Qwen3Config

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
HELD_OUT_SHARE = 0.05
HELD_OUT_SEQUENCES = 64
WARMUP_STEPS = 30


def refuse(message: str) -> NoReturn:
    """End the run over bad input; the message names the file or option and the next step."""
    print(f"train.py: {message}", file=sys.stderr)
    sys.exit(2)


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong option in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        refuse(f"{message}; see --help")


def count(value: str) -> int:
    """Parse an option that counts something."""
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return number


def amount(value: str) -> float:
    """Parse an option that measures something."""
    number = float(value)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{value} is not a number above 0")
    return number


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(
        prog="train.py", description="Train a small Qwen3 language model with sliding-window layers from one text file."
    )
    add = parser.add_argument
    add("--text", type=Path, required=True, help="UTF-8 text file to train on")
    add("--output", type=Path, required=True, help="checkpoint folder to create")
    add("--force", action="store_true", help="replace the checkpoint of an existing folder; other files stay")
    shape = Path(__file__).parent / "model" / "config.json"
    add("--config", type=Path, default=shape, help="config.json with the shape (default: that of the bundled model)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=count, help="stop after this many optimizer steps")
    length.add_argument("--minutes", type=amount, default=20.0, help="or after this time (default: %(default)s)")
    add("--batch-size", type=count, default=8, help="sequences per step (default: %(default)s)")
    add("--sequence-length", type=count, default=256, help="tokens per sequence (default: %(default)s)")
    add("--learning-rate", type=amount, default=3e-3, help="highest rate, after the warm-up (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the weights and of the order of the text (default: %(default)s)")
    return parser.parse_args(arguments)


def read_text(path: Path) -> str:
    """Read the training text, without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as fault:
        refuse(f"{path}: cannot be read ({fault.strerror}); give a text file with --text")
    except UnicodeDecodeError as fault:
        refuse(f"{path}: not UTF-8 (byte {fault.start}); convert the file to UTF-8, for example with iconv")


def prepare_output(folder: Path, force: bool) -> None:
    """Create the output folder before the training, so that a bad path costs no training time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        filled = any(folder.iterdir())
    except OSError as fault:
        refuse(f"{folder}: cannot be the output folder ({fault.strerror}); choose another --output")
    if filled and not force:
        refuse(f"{folder}: already exists; choose another --output, or add --force")
    if not os.access(folder, os.W_OK):
        refuse(f"{folder}: is not writable; choose another --output")


def read_config(path: Path, sequence_length: int) -> Qwen3Config:
    """Read the shape of the model; the ids of the special tokens are those of the tokenizer trained here."""
    try:
        config = Qwen3Config.from_json_file(path)
    except OSError as fault:
        refuse(f"{path}: cannot be read ({fault.strerror}); give a config.json with --config")
    except Exception as fault:  # noqa: BLE001  bare Exception is the one base of what transformers raises here
        refuse(f"{path}: not the config.json of a Qwen3 model ({' '.join(str(fault).split())}); correct it")
    if config.model_type != "qwen3":
        refuse(f"{path}: model_type is {config.model_type}, not qwen3; give another file with --config")
    if not 2 <= sequence_length <= config.max_position_embeddings:
        refuse(f"--sequence-length {sequence_length}: give 2 to {config.max_position_embeddings}, the model's context")
    # Twice the usual deviation of the first weights: a model this narrow then starts to learn much sooner.
    config.initializer_range = 0.04
    config.bos_token_id = config.eos_token_id = config.pad_token_id = END_OF_TEXT_ID
    return config


def split_documents(text: str) -> tuple[list[str], list[str]]:
    """Divide the text at separator lines, and the documents into training and held-out ones."""
    parts = re.split(r"^<\|endoftext\|>[ \t]*$", text, flags=re.MULTILINE)
    documents = [part.strip("\n") for part in parts if part.strip()] or [""]
    if len(documents) == 1:
        document = documents[0]
        cut = int(len(document) * (1 - HELD_OUT_SHARE))
        # After a line break no word is cut in two; a text of a single line has no better place than this one.
        cut = document.rfind("\n", 0, cut) + 1 or cut
        documents = [document[:cut], document[cut:]]
    held_out = max(1, round(len(documents) * HELD_OUT_SHARE))
    return documents[:-held_out], documents[-held_out:]


def train_tokenizer(documents: list[str], vocabulary_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer. It adds no token of its own: whoever runs the model begins the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        # All 256 bytes are in the vocabulary, so that text unlike the training text needs no unknown token.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> torch.Tensor:
    """Encode the documents as one row of tokens, with <|endoftext|> before, between and after them."""
    tokens = [END_OF_TEXT_ID]
    for encoding in tokenizer.encode_batch_fast(documents):
        tokens += [*encoding.ids, END_OF_TEXT_ID]
    return torch.tensor(tokens)


def prepare_tokens(path: Path, text: str, vocabulary_size: int, length: int) -> tuple[Tokenizer, list[torch.Tensor]]:
    """Return the tokenizer, and the tokens to train on and to hold out."""
    training, held_out = split_documents(text)
    tokenizer = train_tokenizer(training, vocabulary_size)
    found = tokenizer.get_vocab_size()
    if found != vocabulary_size:
        refuse(
            f"{path}: yields {found} tokens, not the vocab_size {vocabulary_size} of --config; use a longer text or another --config"
        )
    parts = [encode(tokenizer, training), encode(tokenizer, held_out)]
    shortest = min(len(tokens) for tokens in parts)
    if shortest < length:
        refuse(
            f"{path}: too short, its training or held-out part has {shortest} tokens, fewer than "
            f"--sequence-length {length}; use a longer text or a smaller --sequence-length"
        )
    return tokenizer, parts


def build_model(config: Qwen3Config, path: Path) -> Qwen3ForCausalLM:
    """Create the model with random weights."""
    # Loading the model code takes seconds and can make other installed packages print warnings, so it waits
    # until the input is known to be good: the message about bad input then comes at once, and alone.
    from transformers import Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = Qwen3ForCausalLM(config).float()
        # Sizes that do not fit together, such as 8 query heads on 3 key/value heads, fail only when they are used.
        with torch.no_grad():
            model(input_ids=torch.tensor([[END_OF_TEXT_ID]]))
    except (ArithmeticError, RuntimeError, ValueError) as fault:
        refuse(f"{path}: no model can have this shape ({' '.join(str(fault).split())}); correct it")
    return model


def build_optimizer(model: Qwen3ForCausalLM) -> torch.optim.AdamW:
    """Create the optimizer; normalization weights are not decayed, since pulling them to 0 mutes a layer."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    # Less momentum than the usual 0.9: the loss falls faster in a run of a few hundred steps.
    return torch.optim.AdamW(groups, betas=(0.8, 0.95))


def learning_rate_at(step: int, used: float, options: argparse.Namespace) -> float:
    """Return the learning rate of a step (from 1) that starts with this share of the steps or minutes used."""
    # A run shorter than the warm-up would otherwise never reach its learning rate.
    warmup_steps = min(WARMUP_STEPS, max(1, options.steps // 10)) if options.steps else WARMUP_STEPS
    decay = 0.5 * (1 + math.cos(math.pi * used))
    return options.learning_rate * min(1.0, step / warmup_steps) * decay


def loss_of(model: Qwen3ForCausalLM, tokens: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """Return the mean cross-entropy per token, in nats, of the sequences that begin at these places."""
    sequences = tokens[starts[:, None] + torch.arange(length)]
    # slm-export begins each text with <|endoftext|>, so the model has to know it there.
    sequences[:, 0] = END_OF_TEXT_ID
    return model(input_ids=sequences, labels=sequences, use_cache=False).loss


@torch.no_grad()
def held_out_loss(model: Qwen3ForCausalLM, tokens: torch.Tensor, options: argparse.Namespace) -> float:
    """Return the mean loss on sequences spread evenly over the held-out text, free of bfloat16 rounding."""
    model.eval()
    available = len(tokens) // options.sequence_length
    chosen = min(available, HELD_OUT_SEQUENCES)
    starts = torch.arange(chosen) * available // chosen * options.sequence_length
    batches = starts.split(options.batch_size)
    total = sum(loss_of(model, tokens, batch, options.sequence_length).item() * len(batch) for batch in batches)
    model.train()
    return total / chosen


def train(model: Qwen3ForCausalLM, tokens: torch.Tensor, held_out: torch.Tensor, options: argparse.Namespace) -> None:
    """Train the model until the steps or minutes are used; report after the first step and each tenth of them."""
    optimizer = build_optimizer(model)
    # An own generator keeps the order of the text independent of how many numbers the first weights took.
    generator = torch.Generator().manual_seed(options.seed)
    begun, step, used = time.monotonic(), 0, 0.0
    model.train()
    while used < 1:
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, used, options)
        starts = torch.randint(len(tokens) - options.sequence_length + 1, (options.batch_size,), generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, tokens, starts, options.sequence_length)
        if not torch.isfinite(loss):
            sys.exit("train.py: the loss is not finite; lower --learning-rate and run again")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds, before = time.monotonic() - begun, used
        used = step / options.steps if options.steps else seconds / (60 * options.minutes)
        if step == 1 or int(10 * used) > int(10 * before):
            losses = f"training loss {loss.item():.4f}  held-out loss {held_out_loss(model, held_out, options):.4f}"
            print(f"step {step:6d}  {seconds:7.1f} s  {losses}", flush=True)


def save(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the checkpoint."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "backend": "tokenizers",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": model.config.max_position_embeddings,
        "pad_token": END_OF_TEXT,
        # transformers 5 would write TokenizersBackend here, a name that older releases cannot load.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Train one model and save it."""
    options = parse_options(arguments)
    text = read_text(options.text)
    config = read_config(options.config, options.sequence_length)
    prepare_output(options.output, options.force)
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    tokenizer, (tokens, held_out) = prepare_tokens(options.text, text, config.vocab_size, options.sequence_length)
    model = build_model(config, options.config)
    print(f"{model.num_parameters()} parameters, {len(tokens)} training tokens, {len(held_out)} held-out tokens")
    train(model, tokens, held_out, options)
    save(model, tokenizer, options.output)
    print(f"saved {options.output}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("train.py: interrupted before the checkpoint was complete; run again", file=sys.stderr)
        sys.exit(130)
