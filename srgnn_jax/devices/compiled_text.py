"""Reads a compiled step's operations, and on TPU their cycles, from its text.

read_operations(compiled.as_text())
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

# An operation's group is the one that matches "file:function" of the innermost function
# in its stack that any group matches.
GROUPS = {
    "Adam": r"/optax/",
    "lookup": r"gather_part|:_lookup|:ItemTable\.lookup",
    "softmax": r"/(losses|ranking|item_table)\.py:",
    "network": r"/(gnn|graph|readout|srgnn)\.py:",
}
OTHER_GROUPS = ("layout copies", "collectives", "other")

_COLLECTIVE = re.compile(
    r"((?:ragged-)?all-to-all|all-reduce|all-gather|reduce-scatter|collective-\w+?)"
    r"(-start|-done)?"
)
_NOT_LAUNCHED = re.compile(
    "parameter|constant|tuple|get-tuple-element|bitcast|after-all|opt-barrier|"
    "partition-id|replica-id"
)
_INSTRUCTION = re.compile(r" +(?:ROOT )?%?(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)")
_ARRAY = re.compile(r"[a-z]+(\d*)\w*\[([\d,]*)\](?:\{([\d,]*))?")


def read_operations(text: str) -> dict[str, Any]:
    """Reads a compiled text; operations in a loop count once per iteration.

    Returns:
      The number of launched `operations`, their `estimated_cycles` (TPU only) and how
      many are `unestimated`. The same for each of `groups` and for `table_copies`,
      layout copies of arrays as large as the largest argument. For `collectives`, by
      kind: the number of `operations`, and the `bytes` of their results on a device.
    """
    computations, entry = _read_computations(text)
    largest = max(
        one.sizes()[0][0]
        for one in computations[entry]
        if one.opcode == "parameter" and one.shape.startswith("f")
    )
    counts = {
        name: Counter(operations=0, estimated_cycles=0, unestimated=0)
        for name in ("", "copies", *GROUPS, *OTHER_GROUPS)
    }
    sent: dict[str, Counter[str]] = {}
    for one, times in _walk(computations, entry):
        group, names = one.group(computations), [""]
        if kind := _COLLECTIVE.fullmatch(one.opcode):
            group = "collectives"
            if kind[2] != "-start":
                of_kind = sent.setdefault(kind[1], Counter())
                size = sum(n for _, n in one.sizes())
                of_kind.update(operations=times, bytes=times * size)
        elif one.reorders(computations):
            group = "layout copies"
            names += ["copies"] * (max(one.sizes())[0] >= largest)
        if one.opcode.endswith("-done"):
            continue
        cycles = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
        for name in (*names, group):
            counts[name]["operations"] += times
            if cycles:
                counts[name]["estimated_cycles"] += times * int(cycles[1])
            else:
                counts[name]["unestimated"] += times
    every, copies = counts.pop(""), counts.pop("copies")
    return {**every, "groups": counts, "table_copies": copies, "collectives": sent}


class _Instruction(NamedTuple):
    """A line of a text, the shape of its first operand, and its stack frames."""

    shape: str
    opcode: str
    rest: str
    operand: str
    places: list[str]

    def called(self, names: str, computations: "_Computations") -> "_Computations":
        found = re.findall(rf"\b(?:{names})=\{{?%?([\w.-]+)", self.rest)
        return {name: computations[name] for name in found}

    def sizes(self) -> list[tuple[int, int]]:
        """Returns the number of elements and bytes of each array of the result."""
        found = []
        for bits, axes, _ in _ARRAY.findall(self.shape):
            count = math.prod(int(n) for n in axes.split(",") if n)
            found.append((count, count * int(bits or 8) // 8))
        return found

    def reorders(self, computations: "_Computations") -> bool:
        """Whether it, or all that it fuses, only changes an array's order in memory."""
        for inside in self.called("calls", computations).values():
            fused = [x for x in inside if not _NOT_LAUNCHED.fullmatch(x.opcode)]
            return bool(fused) and all(x.reorders(computations) for x in fused)
        orders = (_ARRAY.search(shape) for shape in (self.shape, self.operand))
        copies = self.opcode == "copy" and len({x[3] for x in orders if x}) == 2
        return copies or self.opcode == "transpose"

    def group(self, computations: "_Computations") -> str:
        """Returns its group, or that of a fused instruction, starting at the result."""
        for place in self.places:
            for group, pattern in GROUPS.items():
                if re.search(pattern, place):
                    return group
        for inside in self.called("calls", computations).values():
            groups = (one.group(computations) for one in reversed(inside))
            return next((group for group in groups if group != "other"), "other")
        return "other"


_Computations = dict[str, list[_Instruction]]


def _read_computations(text: str) -> tuple[_Computations, str]:
    """Returns all computations, and the name of the entry computation."""
    frames, found, entry = _read_frames(text), dict[str, Any](), ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            body, shapes = found.setdefault(head[2], []), dict[str, str]()
            entry = head[2] if head[1] else entry
        elif match := _INSTRUCTION.match(line):
            name, shape, opcode, rest = match.groups()
            operand = shapes.get("".join(re.findall(r"^%?([\w.-]+)", rest)), "")
            frame = "".join(re.findall(r"stack_frame_id=(\d+)", rest))
            places = frames.get(frame, [])
            body.append(_Instruction(shape, opcode, rest, operand, places))
            shapes[name] = shape
    return found, entry


def _read_frames(text: str) -> dict[str, list[str]]:
    """Returns "file:function" of each stack frame, innermost first."""

    def table(title):
        block = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        return dict(x.split(" ", 1) for x in block[1].splitlines()) if block else {}

    files, functions = table("FileNames"), table("FunctionNames")
    places, frames = {}, dict[str, list[str]]()
    for number, line in table("FileLocations").items():
        file, function = re.findall(r"name_id=(\d+)", line)
        places[number] = f"{files[file]}:{functions[function]}".replace('"', "")
    for number, line in table("StackFrames").items():
        place, parent = re.findall(r"_id=(\d+)", line)
        # Parent ids are one too high: 1 means no parent.
        frames[number] = [places[place], *frames.get(str(int(parent) - 1), [])]
    return frames


def _walk(
    computations: _Computations, name: str, times: int = 1
) -> Iterator[tuple[_Instruction, int]]:
    """Yields the instructions that a computation launches, and how often."""
    for one in computations[name]:
        if one.opcode in ("while", "call", "async-start", "conditional"):
            trips = _trips(one, computations) if one.opcode == "while" else 1
            names = r"condition|body|to_apply|calls|\w+_computation"
            for called in one.called(names, computations):
                yield from _walk(computations, called, times * trips)
        elif not _NOT_LAUNCHED.fullmatch(one.opcode) and (
            # Single numbers are computed on the scalar unit or on the host.
            one.opcode in ("fusion", "custom-call")
            or _COLLECTIVE.fullmatch(one.opcode)
            or any(n > 1 for n, _ in one.sizes())
        ):
            yield one, times


def _trips(loop: _Instruction, computations: _Computations) -> int:
    """Returns a loop's number of iterations, 1 if the text does not say."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    # JAX counts from 0 up to a constant in the condition.
    (condition,) = loop.called("condition", computations).values()
    values = (x.rest for x in condition if x.opcode == "constant")
    return max((int(x) for v in values for x in re.findall(r"^(\d+)\)", v)), default=1)
