"""Train a small Qwen3 language model with sliding-window layers from one text file.

Run from the top folder of the project, with torch, transformers and tokenizers installed:

    python examples/train.py --text stories.txt --output stories-5m --minutes 20

The text is any UTF-8 file. The result is a Hugging Face checkpoint folder with config.json,
generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json and train_log.json.
The model has 5.05 million parameters and six layers; layers 0, 1, 3 and 4 see only the last 64 tokens.

How the text is divided into documents:
  * If at least one line consists of <|endoftext|> alone, these lines separate the documents. The lines
    themselves, and the line breaks around each document, are not part of the text.
  * Otherwise the whole file is one document. Blank lines are then ordinary text: they separate paragraphs
    as often as documents, and nothing in the file tells the two apart.

How the text is held out for the validation loss:
  * With several documents, the last ones are held out whole, until they reach --validation-fraction.
  * With one document, its end is held out, cut at a line break where there is one.
The tokenizer is trained on the training part only.

A run with --steps is repeatable: the same text, options, thread count and package versions give the same
weights on the same machine. A run with --minutes is not, since the number of steps depends on the speed.

Exit code: 0 when the checkpoint is saved, 1 when the training diverges, 2 for bad input, 130 when
interrupted. Only a run that ends with 0 has written a complete checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
SEPARATOR_LINE = re.compile(r"^<\|endoftext\|>[ \t]*\r?$", re.MULTILINE)
DEFAULT_MINUTES = 20.0


class BadInputError(Exception):
    """The user's input cannot be used; the message names the file and the next step."""


class DivergedError(Exception):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class ModelSettings:
    """The shape of the model and of its tokenizer."""

    vocabulary_size: int = 2048
    hidden_size: int = 256
    feed_forward_size: int = 768
    layer_count: int = 6
    query_head_count: int = 8
    key_value_head_count: int = 2
    head_size: int = 32
    context_length: int = 512
    sliding_window: int = 64
    sliding_layers: tuple[int, ...] = (0, 1, 3, 4)
    # Twice the usual deviation of the first weights: a model this narrow then starts to learn much sooner.
    initial_deviation: float = 0.04


@dataclass(frozen=True)
class Budget:
    """When to stop: after a number of steps or, when that is None, after a number of minutes."""

    steps: int | None = None
    minutes: float = DEFAULT_MINUTES

    def used(self, steps_done: int, seconds: float) -> float:
        """Return the used share of the budget; training stops at 1."""
        if self.steps is not None:
            return steps_done / self.steps
        return seconds / (self.minutes * 60)


@dataclass(frozen=True)
class TrainingSettings:
    """How the model is optimized and measured."""

    budget: Budget = field(default_factory=Budget)
    batch_size: int = 8
    sequence_length: int = 256
    learning_rate: float = 3e-3
    warmup_steps: int = 30
    # Less momentum than the usual 0.9: the loss falls faster in a run of a few hundred steps.
    momentum_decays: tuple[float, float] = (0.8, 0.95)
    weight_decay: float = 0.1
    gradient_norm_limit: float = 1.0
    validation_fraction: float = 0.05
    validation_sequences: int = 64
    log_interval: int = 150
    seed: int = 0


@dataclass(frozen=True)
class RunSettings:
    """Where the text comes from, where the checkpoint goes, and how it is stored."""

    text: Path
    output: Path
    force: bool
    dtype: str
    threads: int | None
    model: ModelSettings
    training: TrainingSettings


@dataclass(frozen=True)
class LogEntry:
    """One measurement during training."""

    step: int
    seconds: float
    processor_seconds: float
    tokens: int
    training_loss: float
    validation_loss: float
    learning_rate: float


def positive_integer(value: str) -> int:
    """Parse an option that counts something."""
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return number


def positive_number(value: str) -> float:
    """Parse an option that measures something."""
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{value} is not a number above 0")
    return number


def proper_fraction(value: str) -> float:
    """Parse an option that is a share of a whole."""
    number = float(value)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return number


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line; the defaults are those of the settings classes."""
    default = TrainingSettings()
    parser = argparse.ArgumentParser(
        description="Train a small Qwen3 language model with sliding-window layers from one text file.",
        epilog=f"Lines that consist of {END_OF_TEXT} alone separate documents; "
        "without such a line the file is one document.",
    )
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text file to train on")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint folder to create")
    parser.add_argument(
        "--force",
        action="store_true",
        help="write into an existing output folder; its checkpoint is replaced, other files stay",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive_integer, help="stop after this many optimizer steps")
    length.add_argument(
        "--minutes",
        type=positive_number,
        default=DEFAULT_MINUTES,
        help="stop after this many minutes of training (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="type of the saved weights; training itself keeps float32 weights (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive_integer,
        default=default.batch_size,
        help="sequences per step (default: %(default)s)",
    )
    parser.add_argument(
        "--sequence-length",
        type=positive_integer,
        default=default.sequence_length,
        help=f"tokens per sequence, at most {ModelSettings().context_length} (default: %(default)s)",
    )
    parser.add_argument(
        "--learning-rate",
        type=positive_number,
        default=default.learning_rate,
        help="highest learning rate, reached after the warm-up (default: %(default)s)",
    )
    parser.add_argument(
        "--warmup-steps",
        type=positive_integer,
        default=default.warmup_steps,
        help="steps of rising learning rate, at most a tenth of --steps (default: %(default)s)",
    )
    parser.add_argument(
        "--validation-fraction",
        type=proper_fraction,
        default=default.validation_fraction,
        help="share of the text held out for the validation loss (default: %(default)s)",
    )
    parser.add_argument(
        "--log-interval",
        type=positive_integer,
        default=default.log_interval,
        help="steps between two measurements of the validation loss (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        help="seed of the first weights and of the order of the text (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=positive_integer, help="threads that torch may use (default: torch's own choice)"
    )
    return parser


def parse_settings(arguments: list[str] | None) -> RunSettings:
    """Turn the command line into settings."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    model = ModelSettings()
    if options.sequence_length > model.context_length:
        parser.error(f"argument --sequence-length: at most {model.context_length}, the context of the model")
    training = TrainingSettings(
        budget=Budget(steps=options.steps, minutes=options.minutes),
        batch_size=options.batch_size,
        sequence_length=options.sequence_length,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        validation_fraction=options.validation_fraction,
        log_interval=options.log_interval,
        seed=options.seed,
    )
    return RunSettings(
        text=options.text,
        output=options.output,
        force=options.force,
        dtype=options.dtype,
        threads=options.threads,
        model=model,
        training=training,
    )


def read_text(path: Path) -> str:
    """Read the training text."""
    try:
        # Reading bytes keeps the line breaks as they are, so that the hash in the log is that of the file.
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInputError(f"{path}: cannot be read ({reason}); give a text file with --text") from error
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{path}: not UTF-8 (byte {error.start}); convert the file to UTF-8, for example with iconv"
        ) from error


def create_folder(output: Path, force: bool) -> bool:
    """Create the output folder and return whether it is new."""
    try:
        exists = output.exists()
        if exists and not output.is_dir():
            raise BadInputError(f"{output}: is a file, not a folder; choose another --output")
        if exists and not force:
            raise BadInputError(f"{output}: already exists; choose another --output, or add --force")
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInputError(f"{output}: cannot be created ({reason}); choose another --output") from error
    if not os.access(output, os.W_OK):
        raise BadInputError(f"{output}: is not writable; choose another --output")
    return not exists


@contextlib.contextmanager
def reserved_folder(output: Path, force: bool) -> Iterator[None]:
    """Create the output folder before the training, so that a bad path costs no training time."""
    is_new = create_folder(output, force)
    try:
        yield
    finally:
        # A run that fails must not leave an empty folder that then blocks the next run.
        if is_new and not any(output.iterdir()):
            output.rmdir()


def split_documents(text: str) -> list[str]:
    """Divide the text at separator lines; text without any is one document."""
    parts = SEPARATOR_LINE.split(text)
    if len(parts) == 1:
        return parts
    documents = [part.strip("\r\n") for part in parts]
    return [document for document in documents if document]


def cut_document(document: str, fraction: float) -> tuple[list[str], list[str]]:
    """Cut one document into a training part and the held-out end of it."""
    position = int(len(document) * (1 - fraction))
    # After a line break no word is cut in two; a text of a single line has no better place than this one.
    position = document.rfind("\n", 0, position) + 1 or position
    return [document[:position]], [document[position:]]


def hold_out(documents: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Divide the documents into a training part and a held-out part."""
    if len(documents) == 1:
        return cut_document(documents[0], fraction)
    wanted = fraction * sum(len(document) for document in documents)
    first = len(documents)
    held_out = 0
    while first > 1 and held_out < wanted:
        first -= 1
        held_out += len(documents[first])
    return documents[:first], documents[first:]


def train_tokenizer(documents: list[str], settings: ModelSettings) -> tokenizers.Tokenizer:
    """Train a byte-level BPE tokenizer that puts <|endoftext|> in front of each sequence."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary_size,
        special_tokens=[END_OF_TEXT],
        # All 256 bytes are in the vocabulary, so that text unlike the training text needs no unknown token.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT}:1 $B:1",
        special_tokens=[(END_OF_TEXT, END_OF_TEXT_ID)],
    )
    return tokenizer


def encode(tokenizer: tokenizers.Tokenizer, documents: list[str]) -> torch.Tensor:
    """Encode the documents as one row of tokens, with <|endoftext|> before, between and after them."""
    tokens: list[int] = []
    for encoding in tokenizer.encode_batch_fast(documents):
        tokens.extend(encoding.ids)
    tokens.append(END_OF_TEXT_ID)
    return torch.tensor(tokens)


def require_enough_text(path: Path, tokens: torch.Tensor, part: str, sequence_length: int) -> None:
    """Refuse a part of the text that does not fill one sequence and the token after it."""
    if len(tokens) <= sequence_length:
        raise BadInputError(
            f"{path}: text is too short, its {part} part has {len(tokens)} tokens and more than "
            f"{sequence_length} are needed; use a longer text or another --validation-fraction"
        )


def prepare_data(
    path: Path, text: str, settings: RunSettings
) -> tuple[tokenizers.Tokenizer, torch.Tensor, torch.Tensor]:
    """Return the tokenizer, the training tokens and the validation tokens."""
    training = settings.training
    # A byte order mark says how the file is stored; it is not text to learn.
    documents = split_documents(text.removeprefix("\ufeff"))
    if not documents:
        raise BadInputError(f"{path}: has no text besides {END_OF_TEXT} lines; use a longer text")
    training_documents, validation_documents = hold_out(documents, training.validation_fraction)
    tokenizer = train_tokenizer(training_documents, settings.model)
    if tokenizer.get_vocab_size() < settings.model.vocabulary_size:
        raise BadInputError(
            f"{path}: text is too short, it yields {tokenizer.get_vocab_size()} of the "
            f"{settings.model.vocabulary_size} tokens of the vocabulary; use a longer text"
        )
    training_tokens = encode(tokenizer, training_documents)
    validation_tokens = encode(tokenizer, validation_documents)
    require_enough_text(path, training_tokens, "training", training.sequence_length)
    require_enough_text(path, validation_tokens, "validation", training.sequence_length)
    return tokenizer, training_tokens, validation_tokens


def build_model(settings: ModelSettings) -> Qwen3ForCausalLM:
    """Create the model with random weights."""
    # Loading transformers takes seconds and can make other installed packages print warnings, so it waits
    # until the input is known to be good: the message about bad input then comes at once, and alone.
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    layer_types = [
        "sliding_attention" if layer in settings.sliding_layers else "full_attention"
        for layer in range(settings.layer_count)
    ]
    config = Qwen3Config(
        vocab_size=settings.vocabulary_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.feed_forward_size,
        num_hidden_layers=settings.layer_count,
        num_attention_heads=settings.query_head_count,
        num_key_value_heads=settings.key_value_head_count,
        head_dim=settings.head_size,
        max_position_embeddings=settings.context_length,
        use_sliding_window=True,
        sliding_window=settings.sliding_window,
        # layer_types alone decides; 0 keeps readers that only know max_window_layers from ruling windows out.
        max_window_layers=0,
        layer_types=layer_types,
        initializer_range=settings.initial_deviation,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=END_OF_TEXT_ID,
    )
    return Qwen3ForCausalLM(config)


def build_optimizer(model: Qwen3ForCausalLM, settings: TrainingSettings) -> torch.optim.AdamW:
    """Create the optimizer; normalization weights are not decayed, since pulling them to 0 mutes a layer."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.momentum_decays)


def learning_rate_at(step: int, used: float, settings: TrainingSettings) -> float:
    """Return the learning rate of a step (from 1) that starts with this share of the budget used."""
    warmup_steps = settings.warmup_steps
    if settings.budget.steps is not None:
        # A run shorter than the warm-up would otherwise never reach its learning rate.
        warmup_steps = min(warmup_steps, max(1, settings.budget.steps // 10))
    warmup = min(1.0, step / warmup_steps)
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, used)))
    return settings.learning_rate * warmup * decay


def select_sequences(tokens: torch.Tensor, starts: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs and targets of the sequences that begin at these places."""
    sequences = tokens[starts[:, None] + torch.arange(length + 1)]
    inputs, targets = sequences[:, :-1].clone(), sequences[:, 1:]
    # The tokenizer puts <|endoftext|> first, so the model has to know it there. In a text without separator
    # lines it would otherwise never see that token as a first input.
    inputs[:, 0] = END_OF_TEXT_ID
    return inputs, targets


def loss_of(model: Qwen3ForCausalLM, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy per token, in nats."""
    logits = model(input_ids=inputs, use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def validation_starts(token_count: int, settings: TrainingSettings) -> torch.Tensor:
    """Choose sequences that do not overlap, evenly spread over the held-out text."""
    available = (token_count - 1) // settings.sequence_length
    chosen = min(available, settings.validation_sequences)
    return torch.arange(chosen) * available // chosen * settings.sequence_length


@torch.no_grad()
def measure_validation_loss(model: Qwen3ForCausalLM, tokens: torch.Tensor, settings: TrainingSettings) -> float:
    """Return the mean validation loss, in float32 so that the figure is free of bfloat16 rounding."""
    model.eval()
    starts = validation_starts(len(tokens), settings)
    total = 0.0
    for batch in starts.split(settings.batch_size):
        inputs, targets = select_sequences(tokens, batch, settings.sequence_length)
        total += loss_of(model, inputs, targets).item() * len(batch)
    model.train()
    return total / len(starts)


def train_step(
    model: Qwen3ForCausalLM,
    optimizer: torch.optim.AdamW,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    gradient_norm_limit: float,
) -> float:
    """Change the weights once and return the loss before the change."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, inputs, targets)
    if not torch.isfinite(loss):
        raise DivergedError
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_norm_limit)
    optimizer.step()
    return loss.item()


def report(entry: LogEntry) -> None:
    """Show one measurement."""
    print(
        f"step {entry.step:6d}  {entry.seconds:7.1f} s  training loss {entry.training_loss:.4f}  "
        f"validation loss {entry.validation_loss:.4f}  learning rate {entry.learning_rate:.2e}",
        flush=True,
    )


def train(
    model: Qwen3ForCausalLM,
    training_tokens: torch.Tensor,
    validation_tokens: torch.Tensor,
    settings: TrainingSettings,
) -> list[LogEntry]:
    """Train the model until the budget is used and return the measurements."""
    model.train()
    optimizer = build_optimizer(model, settings)
    # An own generator keeps the order of the text independent of how many numbers the first weights took.
    generator = torch.Generator().manual_seed(settings.seed)
    last_start = len(training_tokens) - settings.sequence_length
    started, processor_started = time.monotonic(), time.process_time()
    log: list[LogEntry] = []
    step, used = 0, 0.0
    while used < 1:
        step += 1
        rate = learning_rate_at(step, used, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(last_start, (settings.batch_size,), generator=generator)
        inputs, targets = select_sequences(training_tokens, starts, settings.sequence_length)
        loss = train_step(model, optimizer, inputs, targets, settings.gradient_norm_limit)
        used = settings.budget.used(step, time.monotonic() - started)
        if step == 1 or step % settings.log_interval == 0 or used >= 1:
            entry = LogEntry(
                step=step,
                seconds=round(time.monotonic() - started, 1),
                processor_seconds=round(time.process_time() - processor_started, 1),
                tokens=step * settings.batch_size * settings.sequence_length,
                training_loss=round(loss, 4),
                validation_loss=round(measure_validation_loss(model, validation_tokens, settings), 4),
                learning_rate=rate,
            )
            log.append(entry)
            report(entry)
    return log


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write one JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: tokenizers.Tokenizer, settings: RunSettings) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(settings.output / "tokenizer.json"))
    config: dict[str, object] = {
        "backend": "tokenizers",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": settings.model.context_length,
        "pad_token": END_OF_TEXT,
        # transformers 5 would write TokenizersBackend here, a name that older releases cannot load.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(settings.output / "tokenizer_config.json", config)


def save_log(text: str, parameter_count: int, log: list[LogEntry], settings: RunSettings) -> None:
    """Write train_log.json: what the weights were made from, how, and how the losses fell."""
    training = asdict(settings.training)
    budget = training.pop("budget")
    # Only the budget that ended the run is recorded: the default minutes mean nothing beside --steps.
    kind = "minutes" if budget["steps"] is None else "steps"
    record: dict[str, object] = {
        "architecture": "Qwen3ForCausalLM",
        "parameters": parameter_count,
        # The name and the hash identify the text; the full path would only describe one machine.
        "text": settings.text.name,
        "text_sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
        "saved_dtype": settings.dtype,
        "bfloat16_autocast": True,
        "threads": torch.get_num_threads(),
        "packages": {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers")},
        "model": asdict(settings.model),
        "training": {kind: budget[kind], **training},
        "log": [asdict(entry) for entry in log],
    }
    write_json(settings.output / "train_log.json", record)


def run(settings: RunSettings) -> None:
    """Train one model and save it."""
    text = read_text(settings.text)
    with reserved_folder(settings.output, settings.force):
        tokenizer, training_tokens, validation_tokens = prepare_data(settings.text, text, settings)
        model = build_model(settings.model)
        parameter_count = model.num_parameters()
        print(
            f"{parameter_count} parameters, {len(training_tokens)} training tokens, "
            f"{len(validation_tokens)} validation tokens",
            flush=True,
        )
        log = train(model, training_tokens, validation_tokens, settings.training)
        model.to(getattr(torch, settings.dtype)).save_pretrained(settings.output)
        save_tokenizer(tokenizer, settings)
        save_log(text, parameter_count, log, settings)
    print(f"saved {settings.output}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    settings = parse_settings(arguments)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.training.seed)
    torch.use_deterministic_algorithms(True)
    try:
        run(settings)
    except BadInputError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except DivergedError:
        print("train.py: the loss is not finite; lower --learning-rate and run again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train.py: interrupted before the checkpoint was complete; run again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
