"""The two texts of an export as token windows: the one that quantization listens to, and the one that judges the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.checkpoint.text import TextCodec, read_text
from exporter.errors import UsageError
from exporter.recipe import Recipe


@dataclass(frozen=True)
class Texts:
    """Token windows of the calibration and evaluation texts."""

    calibration: list[list[int]]
    evaluation: list[list[int]]

    def activations(self, recipe: Recipe) -> list[list[int]]:
        """The calibration windows that activation ranges come from."""
        return self.calibration[: -(-recipe.calibration.activation_tokens // recipe.calibration.window)]


def read_texts(recipe: Recipe, calibration: Path, evaluation: Path, codec: TextCodec) -> Texts:
    """As many windows as the recipe asks for. Raises UsageError naming the file and the setting when a text is too short."""
    listen, judge = recipe.calibration, recipe.verify
    count = -(-listen.tokens // listen.window)
    heard = _windows(codec, calibration, "calibration", listen.window, count)
    if len(heard) < count:
        raise _too_short(calibration, "calibration", heard, count, f"calibration.tokens={len(heard) * listen.window}")
    wanted = {"verify.windows": judge.windows, "verify.quality_windows": judge.quality_windows}
    judged = _windows(codec, evaluation, "evaluation", judge.window, max(wanted.values()))
    if len(judged) < max(wanted.values()):
        settings = [f"{name}={len(judged)}" for name, windows in wanted.items() if windows > len(judged)]
        raise _too_short(evaluation, "evaluation", judged, max(wanted.values()), " --set ".join(settings))
    return Texts(heard, judged)


def _too_short(path: Path, purpose: str, found: list[list[int]], wanted: int, settings: str) -> UsageError:
    """A figure over fewer tokens than the recipe asks for would not be the recipe's."""
    message = (
        f"{purpose} file {path} fills {len(found)} windows of {len(found[0])} tokens, the recipe asks for {wanted}"
    )
    return UsageError(message, f"pass a longer text, or --set {settings}")


def _windows(codec: TextCodec, path: Path, purpose: str, length: int, count: int) -> list[list[int]]:
    text = read_text(path, purpose)
    try:
        return codec.windows(text, length, count)
    except UsageError as fault:
        raise UsageError(f"{purpose} file {path}: {fault.message}", fault.next_step) from None
