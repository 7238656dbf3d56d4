"""The state of a device before, during and after a measurement, read from the host: a runner that read it would disturb its own times.

One shell script serves Linux and Android; what a device does not say is null, never 0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

INTERVAL_S = 1.0

SCRIPT = r"""
show() { [ -r "$2" ] && read -r value < "$2" && echo "$1 $value"; }
show load /proc/loadavg
for core in /sys/devices/system/cpu/cpu[0-9]*/cpufreq; do
  show governor "$core/scaling_governor"; show khz "$core/scaling_cur_freq"; show max_khz "$core/scaling_max_freq"
done
for zone in /sys/class/thermal/thermal_zone*; do show "celsius_milli" "$zone/temp"; done
for supply in /sys/class/power_supply/*; do
  [ -r "$supply/status" ] && read -r state < "$supply/status" && [ "$state" = Discharging ] || continue
  show microamperes "$supply/current_now"; show microvolts "$supply/voltage_now"
done
if [ -x /system/bin/dumpsys ] || command -v dumpsys > /dev/null 2>&1; then
  dumpsys thermalservice 2>/dev/null | while read -r a b c _; do [ "$a $b" = "Thermal Status:" ] && echo "thermal_status $c"; done
  dumpsys battery 2>/dev/null | while read -r key number _; do
    case $key in level:) echo "battery_percent $number";; temperature:) echo "battery_decicelsius $number";; esac
  done
fi
true
"""

IDENTITY_SCRIPT = r"""
echo "kernel $(uname -sr)"; echo "architecture $(uname -m)"
while read -r line; do case $line in model\ name*) echo "processor ${line#*: }"; break;; esac; done < /proc/cpuinfo
while read -r key kilobytes _; do [ "$key" = MemTotal: ] && echo "memory_kb $kilobytes"; done < /proc/meminfo
if command -v getprop > /dev/null 2>&1; then
  echo "soc $(getprop ro.soc.model)"; echo "model $(getprop ro.product.model)"; echo "system $(getprop ro.build.version.release)"
fi
true
"""


@dataclass(frozen=True)
class Snapshot:
    """One reading. `at_s` counts from the start of the measurement; `celsius` is the hottest zone; `thermal_status` is Android's, 0
    (none) to 6 (shutdown)."""

    at_s: float
    load_1min: float | None
    governor: str | None
    khz: tuple[int, ...]
    max_khz: tuple[int, ...]
    celsius: float | None
    thermal_status: int | None
    battery_percent: int | None
    battery_celsius: float | None
    battery_watts: float | None = None
    """What the whole device takes from its battery; None while it is charged, when the current says nothing."""

    @staticmethod
    def parse(text: str, at_s: float) -> Snapshot:
        """Of the script's output; a line that is cut off counts as not said."""
        said: dict[str, list[str]] = {}
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            said.setdefault(key, []).append(value)

        def numbers(key: str) -> list[int]:
            return [int(value) for value in said.get(key, []) if value.lstrip("-").isdigit()]

        def first(key: str) -> int | None:
            return next(iter(numbers(key)), None)

        load, governors, battery = said.get("load"), sorted(set(said.get("governor", []))), first("battery_decicelsius")
        degrees = [value / 1000 for value in numbers("celsius_milli") if 0 < value < 200_000]
        return Snapshot(
            at_s,
            float(load[0].split()[0]) if load and load[0].split() else None,
            "+".join(governors) or None,
            tuple(numbers("khz")),
            tuple(numbers("max_khz")),
            max(degrees, default=None),
            first("thermal_status"),
            first("battery_percent"),
            None if battery is None else battery / 10,
            _watts(first("microamperes"), first("microvolts")),
        )


def _watts(microamperes: int | None, microvolts: int | None) -> float | None:
    """Drivers disagree about the sign of a current, and say 0 where they cannot read it."""
    return abs(microamperes) * microvolts / 1e12 if microamperes and microvolts else None


@dataclass(frozen=True)
class Identity:
    """What kind of machine it is."""

    kernel: str | None
    architecture: str | None
    processor: str | None
    soc: str | None
    model: str | None
    system: str | None
    memory_bytes: int | None

    @staticmethod
    def parse(text: str) -> Identity:
        said = {key: value for key, _, value in (line.partition(" ") for line in text.splitlines()) if value.strip()}
        memory = said.get("memory_kb", "")
        names = ("kernel", "architecture", "processor", "soc", "model", "system")
        kernel, architecture, processor, soc, model, system = (said.get(name) for name in names)
        size = 1024 * int(memory) if memory.isdigit() else None
        return Identity(kernel, architecture, processor, soc, model, system, size)


@dataclass(frozen=True)
class Conditions:
    """All that was read around one measurement."""

    identity: Identity
    before: Snapshot
    during: tuple[Snapshot, ...]
    after: Snapshot | None

    def disturbed(self, start_s: float, end_s: float) -> bool:
        """Whether, between two moments, the thermal status rose or the highest clock was lowered."""
        every = [self.before, *self.during, *([self.after] if self.after else [])]
        earlier = [snapshot for snapshot in every if snapshot.at_s <= start_s]
        base = earlier[-1] if earlier else self.before
        within = [snapshot for snapshot in every if start_s < snapshot.at_s <= end_s + INTERVAL_S]
        hotter = any((later.thermal_status or 0) > (base.thermal_status or 0) for later in within)
        slower = any(max(later.max_khz, default=0) < max(base.max_khz, default=0) for later in within if later.max_khz)
        return hotter or slower

    def mean_watts(self) -> float | None:
        """Of the readings during the measurement; None where one of them could not be had."""
        watts = [snapshot.battery_watts for snapshot in self.during]
        known = [value for value in watts if value is not None]
        return sum(known) / len(known) if known and len(known) == len(watts) else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Watch:
    """Context manager: reads the device before, every second during, and after its body. `shell` runs a script on the device and returns
    what it printed, or None when the device does not answer."""

    def __init__(self, shell: Callable[[str], str | None]) -> None:
        self._shell, self._stop = shell, threading.Event()
        self._during: list[Snapshot] = []
        self._after: Snapshot | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._started = time.monotonic()
        self._identity = Identity.parse(self._shell(IDENTITY_SCRIPT) or "")
        self._before = self._snapshot() or Snapshot.parse("", self.now())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._after = self._snapshot()

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def conditions(self) -> Conditions:
        return Conditions(self._identity, self._before, tuple(self._during), self._after)

    def _snapshot(self) -> Snapshot | None:
        text = self._shell(SCRIPT)
        return None if text is None else Snapshot.parse(text, self.now())

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            snapshot = self._snapshot()
            if snapshot is None:
                return  # the device has gone; whoever reads its output says so
            self._during.append(snapshot)
