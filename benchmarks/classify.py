r"""How fast turns are classified and slots found; and what serving engines' Hermes parsers make of the same turns.

All times are CPU time of this one process, parsers alternating pass by pass over the same seeded turns. The peers
are the engines' parsers alone, with logging off. They do less: they return the calls they can use, without a
reason, and the rest as text or not at all; the second table counts that. They are used where found, best in a
folder of their own, so that nothing installed is replaced (1.2 GB, nearly all of it vLLM):

    pip install --no-deps --target PEERS sglang msgspec openai sniffio pybase64 ipython traitlets orjson \
        partial-json-parser
    pip install --no-deps --target PEERS vllm cbor2 pyzmq aiohttp multidict attrs yarl propcache aiosignal \
        aiohappyeyeballs frozenlist openai-harmony fastapi starlette opentelemetry-api pillow cachetools \
        prometheus-client cloudpickle uvloop py-cpuinfo

    [PYTHONPATH=PEERS] python benchmarks/classify.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from seeded_turns import FAMILIES, TOOLS, Turn, turns
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from collapsewatch import classify
from collapsewatch.formats import FORMATS, format_named
from collapsewatch.formats.base import BoundFormat

TURNS_PER_S, NS_PER_TOKEN = 20_000, 1_000  # the goals
OUTCOMES = ("call", "text", "nothing")
SHORT, LONG = 30, 4_000  # characters of free text
ROWS, WIDTH = 64, 512


class Peer(NamedTuple):
    parse: Callable[[str], Any]
    calls: str  # attributes of what it returns
    text: str

    def outcome(self, text: str) -> str:
        found = self.parse(text)
        if getattr(found, self.calls):
            return "call"
        return "text" if (getattr(found, self.text) or "").strip() else "nothing"


def sglang() -> Peer:
    # The package's own `__init__` imports the engine and its kernels; the parser needs none of that.
    package = ModuleType("sglang")
    package.__path__ = list(find_spec("sglang").submodule_search_locations)
    sys.modules["sglang"] = package
    detector = importlib.import_module("sglang.srt.function_call.hermes_detector").HermesDetector()
    tool = importlib.import_module("sglang.srt.entrypoints.openai.protocol").Tool
    tools = [tool(type="function", function={"name": name, "parameters": {}}) for name in TOOLS]
    return Peer(partial(detector.detect_and_parse, tools=tools), "calls", "normal_text")


def vllm() -> Peer:
    parser = importlib.import_module("vllm.tool_parsers.hermes_tool_parser").Hermes2ProToolParser
    # It asks for a tokenizer, and reads it only when streaming; it does not read the request.
    return Peer(partial(parser(object()).extract_tool_calls, request=None), "tool_calls", "content")


def peers() -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers at hand, and of each its version or why it is not there."""
    found, notes = {}, {}
    for load in (sglang, vllm):
        name = load.__name__
        if find_spec(name) is None:
            notes[name] = "not installed; the head of this file says how"
            continue
        try:
            found[name], notes[name] = load(), version(name)
        except (ImportError, OSError, AttributeError) as error:
            notes[name] = f"not usable: {error}"
    return found, notes


def spread(values: Iterable[float], digits: int | None = None) -> dict[str, float]:
    ordered = sorted(values)
    rounded = (round(value, digits) for value in (statistics.median(ordered), ordered[0], ordered[-1]))
    return dict(zip(("median", "min", "max"), rounded, strict=True))


def seconds(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each piece of work, round by round, in turns forwards and backwards; one more comes first."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(rounds + 1):
        for name in list(work)[:: 1 if round_ % 2 else -1]:
            began = time.process_time()
            work[name]()
            if round_:
                taken[name].append(time.process_time() - began)
    return taken


def parse_all(parse: Callable[[str], Any], texts: Sequence[str]) -> None:
    for text in texts:
        parse(text)


def speed(parsers: dict[str, Callable[[str], Any]], made: Sequence[Turn], rounds: int) -> dict[str, Any]:
    """Turns and megabytes per second of each parser, and how many times as fast as it the first one is."""
    texts = [turn.text for turn in made]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    taken = seconds({name: partial(parse_all, parse, texts) for name, parse in parsers.items()}, rounds)
    ours = next(iter(taken.values()))
    rows = {
        name: {
            "turns_per_s": spread(len(texts) / s for s in times),
            "mb_per_s": spread((megabytes / s for s in times), 2),
            "ours_over_theirs": spread((s / own for s, own in zip(times, ours, strict=True)), 2),
        }
        for name, times in taken.items()
    }
    return {"turns": len(texts), "mean_characters": round(statistics.mean(map(len, texts))), "parsers": rows}


def outcomes(found: dict[str, Peer], made: Sequence[Turn]) -> dict[str, Any]:
    """By kind of turn: how many we call healthy, and what each peer returns."""
    by_kind: dict[str, list[str]] = {"call": [], "reply": []}
    for kind, text in sorted(made):
        by_kind.setdefault(kind, []).append(text)
    by_kind["all broken"] = [text for kind, text in made if kind not in ("call", "reply")]
    kinds: dict[str, Any] = {}
    for kind, texts in by_kind.items():
        kinds[kind] = {"turns": len(texts), "healthy": sum(classify(text).structure.healthy for text in texts)}
        for name, peer in found.items():
            counts = Counter(map(peer.outcome, texts))
            kinds[kind][name] = {outcome: counts[outcome] for outcome in OUTCOMES}
    return kinds


def byte_pairs(texts: Sequence[str], markers: Sequence[str]) -> Any:
    """A byte-level tokenizer of some 4,000 tokens, trained on `texts`, and one token more for each of `markers`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, show_progress=False)
    )
    core.add_tokens([AddedToken(marker, special=marker.startswith("<|"), normalized=False) for marker in markers])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")


def batch(rows: Sequence[list[int]], rng: random.Random) -> tuple[Any, Any]:
    """Ids and mask (ROWS, WIDTH): rollouts of several turns, with 30 tokens of somebody else's after each."""
    ids, mask = [], []
    for _ in range(ROWS):
        row: list[int] = []
        own: list[bool] = []
        while len(row) < WIDTH:
            turn = rng.choice(rows)
            row += [*turn, *turn[:1] * 30]
            own += [True] * len(turn) + [False] * 30
        ids.append(row[:WIDTH])
        mask.append(own[:WIDTH])
    return np.array(ids), np.array(mask)


def from_ids(texts: Sequence[str], rounds: int, seed: int) -> dict[str, Any]:
    """Slots per token and classification per turn, for tokenizers with and without `<tool_call>`."""
    markers = [marker.text for marker in format_named("hermes").markers]
    slots: dict[str, Callable[[], Any]] = {}
    judged: dict[str, Callable[[], Any]] = {}
    for kind, own in {"with": markers, "without": [m for m in markers if m.startswith("<|")]}.items():
        tokenizer = byte_pairs(texts, own)
        bound: BoundFormat = format_named("hermes").bind(tokenizer)
        rows: list[list[int]] = [tokenizer.encode(text + "<|im_end|>", add_special_tokens=False) for text in texts]
        spam: list[int] = tokenizer.encode("<tool_call>", add_special_tokens=False)
        slots[f"{kind} <tool_call>"] = partial(bound.slots, *batch(rows, random.Random(seed)))
        slots[f"{kind} <tool_call>, of which all rows consist"] = partial(
            bound.slots, np.resize(spam, (ROWS, WIDTH)), np.ones((ROWS, WIDTH), bool)
        )
        judged[f"{kind} <tool_call>"] = partial(parse_all, bound.classify_ids, rows)
    return {
        "slots_ns_per_token": {
            name: spread(s / ROWS / WIDTH * 1e9 for s in taken) for name, taken in seconds(slots, rounds).items()
        },
        "classify_ids_us_per_turn": {
            name: spread((s / len(texts) * 1e6 for s in taken), 1) for name, taken in seconds(judged, rounds).items()
        },
    }


def measure(rounds: int, seed: int) -> dict[str, Any]:
    logging.disable(logging.CRITICAL)  # the peers log every call that they cannot use
    found, notes = peers()
    ours: dict[str, Callable[[str], Any]] = {"collapsewatch": classify}
    hermes = ours | {name: peer.parse for name, peer in found.items()}
    short = turns("hermes", 2000, SHORT, seed)
    speeds = {
        "hermes": speed(hermes, short, rounds),
        "hermes, long": speed(hermes, turns("hermes", 100, LONG, seed), rounds),
    }
    for name in [name for name in FORMATS if name in FAMILIES and name != "hermes"]:
        parse = partial(classify, format=name)
        speeds[name] = speed({"collapsewatch": parse}, turns(name, 1000, SHORT, seed), rounds)
    return {
        "peers": notes,
        "speed": speeds,
        "outcomes": outcomes(found, turns("hermes", 10_000, SHORT, seed)),
        **from_ids([turn.text for turn in short], rounds, seed),
    }


def show(part: dict[str, float]) -> str:
    return f"{part['median']:,} ({part['min']:,}-{part['max']:,})"


def report(result: dict[str, Any]) -> None:
    for name, note in result["peers"].items():
        print(f"{name}: {note}")
    print()
    for name, table in result["speed"].items():
        for parser, row in table["parsers"].items():
            ratio = "" if parser == "collapsewatch" else f"  ours over theirs {show(row['ours_over_theirs'])}"
            print(
                f"{name:13} ({table['mean_characters']:4} characters)  {parser:13}"
                f"  turns/s {show(row['turns_per_s'])}  MB/s {show(row['mb_per_s'])}{ratio}"
            )
    print("\nthe peers give no reasons; what becomes of a turn in hermes:")
    for kind, row in result["outcomes"].items():
        print(f"  {kind:20} {row['turns']:5} turns  ours: {row['healthy']} healthy", end="")
        for name in [name for name in result["peers"] if name in row]:
            print(f"  {name}: " + ", ".join(f"{count} {what}" for what, count in row[name].items() if count), end="")
        print()
    for key, title in (
        ("slots_ns_per_token", "slots, ns a token"),
        ("classify_ids_us_per_turn", "classify_ids, µs a turn"),
    ):
        print(f"\n{title}")
        for name, part in result[key].items():
            print(f"  {name:48} {show(part)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 31")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = measure(rounds=5 if options.quick else 31, seed=options.seed)
    if options.json:
        print(json.dumps(result))
        return
    report(result)
    rate = result["speed"]["hermes"]["parsers"]["collapsewatch"]["turns_per_s"]
    slots = result["slots_ns_per_token"]["with <tool_call>"]
    print(
        f"\nclassify: {show(rate)} short turns/s on one core (goal {TURNS_PER_S:,});"
        f" slots: {show(slots)} ns a token (goal {NS_PER_TOKEN:,})"
    )


if __name__ == "__main__":
    main()
