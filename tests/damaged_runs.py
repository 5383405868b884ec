"""Folders of runs, damaged or altered at random: what loads must predict, or say in words why it cannot.

``python tests/damaged_runs.py FOLDER COUNT SEED`` writes runs to FOLDER, damages COUNT copies of them, and
watches what is opened and started meanwhile. Most copies get checksums that fit, as an attacker would do.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import sys
import time
import tracemalloc
import warnings
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
import safetensors.numpy

from mlp_xp import MLPClassifier, MLPRegressor
from mlp_xp.tables import DataError, learn_schema, load_run
from mlp_xp.tables._networks import Training
from mlp_xp.tables._pipelines import prepare
from mlp_xp.tables._preprocessing import AS_THEY_ARE
from mlp_xp.tables._rows import LabelledRows, known_rows
from mlp_xp.tables._runs import Run, table_notes, write_run
from mlp_xp.tables._scores import Baseline
from mlp_xp.tables._settings import TABULAR
from mlp_xp.tables._targets import find_target

FILES = ("pipeline.json", "network.safetensors", "run.json")

MAX_SECONDS = 2.0
"""Of the processor, as others may be busy too."""

MAX_BYTES_PER_BYTE, MAX_BYTES_BESIDE = 50, 2**23

N_RUNS_PER_TRACE = 4
"""Of how many runs one has its memory measured, which takes as long as all the rest."""

TABLE = pl.DataFrame(
    {
        "size": ["1.5", "NA", "-3e5", "100", "7", "0"],
        "price": ["1.234,5", "2", None, "0,5", "1.000.000", "-3"],
        "day": ["2020-02-29", "1999-12-31", None, "2024-01-01", "1970-01-01", "2020-02-29"],
        "clock": ["10:30", "0:00", "23:59:59", "11:00 PM", None, "7:15"],
        "flag": ["true", "false", None, "True", "FALSE", "1"],
        "kind": ["a", "b", None, "never", "c", "a"],
        "w": ["1", "2", "0.5", "0", "1", "1"],
        "y": ["low", "mid", "low", "mid", "low", "mid"],
        "value": ["1", "2", "3", "4", "5", "6"],
        "two": ["no", "yes", None, "no", "no", "yes"],
        "town": ["town 0", "town 1", None, "town 99", "elsewhere", "town 0"],
    }
)
"""Text; what is read by its formats is also predicted from."""


def training_table(n_rows=60):
    """A table of text with a column of every kind, some of them with missing values."""
    random, rows = np.random.RandomState(0), range(n_rows)
    letters = [("a", "b", "c", None)[row % 4] for row in rows]
    frame = pl.DataFrame(
        {
            "size": [f"{value:.3f}" for value in random.randn(n_rows)],
            "price": [f"{1 + row}.{random.randint(1000):03d},{row % 10}" for row in rows],
            "day": [f"20{row % 30:02d}-{1 + row % 12:02d}-{1 + row % 28:02d}" for row in rows],
            "clock": [f"{row % 24}:{row % 60:02d}" for row in rows],
            "flag": [("true", "False")[value] for value in random.randint(2, size=n_rows)],
            "kind": letters,
            "town": [f"town {row // 2 % 25 if row % 2 else 0}" for row in rows],
            "w": ["1", "2"] * (n_rows // 2),
            "y": [("low", "mid", "high")[row % 3] for row in rows],
            "two": [("no", "yes")[row % 2] for row in rows],
            "value": [f"{value:.2f}" for value in 10.0 * random.randn(n_rows)],
        }
    )
    holes = {name: pl.Series(random.rand(n_rows) < 0.1) for name in ("size", "day", "flag", "town")}
    return frame.with_columns(frame[name].set(hole, None) for name, hole in holes.items())


def make_run(folder, frame, target, *, dtype="float32", drop=(), weight=None, inputs=AS_THEY_ARE, **settings):
    """Train a run on all rows of a table, and write it into a new folder; return it as it was in memory."""
    schema = learn_schema(frame, target, drop=list(drop), sample_weight=weight)
    known = known_rows(schema, frame)
    found = find_target(known.target)
    rows = LabelledRows(known.frame, found.values, known.sample_weight)
    data = prepare(found.task, schema, {"training": rows}, dtype, inputs)
    kind = MLPClassifier if found.task == "classification" else MLPRegressor
    model = kind(**{"hidden_layer_sizes": (4,), "max_iter": 3, "random_state": 0, **settings})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*hasn't converged")
        Training(model, data).run()
    folder.mkdir()
    description = {"command": f"mlp-xp train table.csv --target {target}"}
    run = Run(folder, data.pipeline(model), Baseline.fit(found.task, found.values), description)
    write_run(folder, run, [model.history_])
    return run


def write_runs(folder):
    """Write runs of all tasks into a folder; return them as they were in memory, by name."""
    frame = training_table()
    return {
        "classes": make_run(
            folder / "classes", frame, "y", drop=["two", "value"], weight="w", inputs=TABULAR.inputs
        ),
        "two": make_run(folder / "two", frame, "two", dtype="float64", drop=["y", "value", "w"]),
        "values": make_run(folder / "values", frame, "value", drop=["y", "two", "w", "town"]),
    }


VALUES = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        2**31,
        2**53,
        2**63,
        2**64,
        10**400,
        0.5,
        -0.0,
        5e-324,
        1e-300,
        1e300,
    ),
    *(-1.7e308, float("nan"), float("inf"), "", "a", "b", "y", "size", "number", "date", "truth", "category"),
    *(
        "\ud800",
        "\0",
        "\x1b[2J",
        "a" * 10_000,
        ".",
        ",",
        "%",
        "\u20ac",
        "(",
        "year-month-day",
        "hours:minutes",
    ),
    *([], {}, [[]], [0], ["a"], ["a", "a"], ["?", "NA", ""], ["hours:minutes", "year-month"], ["month year"]),
    *({"a": 1}, {"decimal": ".", "grouping": ".", "sign": ""}, {"decimal": ",", "grouping": "", "sign": "$"}),
    *(
        {"forms": ["year-month-day"]},
        {"forms": ["hours:minutes"]},
        {"forms": ["month/day/year", "year-month"]},
    ),
    *({"fill": 0.0, "mean": 0.0, "scale": 5e-324}, {"fill": 1.5e308, "mean": 1e308, "scale": 1e308}),
    {"values": ["a", "b", "c"], "has_rare": True, "has_missing": True, "commonest": "a"},
    {"values": [], "has_rare": True, "has_missing": False, "commonest": ""},
    {"name": "size", "kind": "category", "format": None, "missing": ["NA"]},
    {"name": "new", "kind": "truth", "format": None, "missing": []},
    {"mean": 1.0, "counts": [], "commonest": ""},
    {"mean": None, "counts": [3, 4], "commonest": "low"},
    *({"$tuple": [2]}, {"$float": "nan"}, {"$array": ["int8", [0, 1]]}, {"$array": ["float64", [0.0, 1.0]]}),
    *({"$array": ["str", ["a", "\ud800"]]}, {"$array": ["object", ["a", "b"]]}, {"$dict": [[0, 1.0]]}),
    *({"$array": ["uint8", [0, 1, 2]]}, {"$array": ["bool", [False, True]]}, {"$loss": "poisson"}),
    *({"$activation": ["elu", {"alpha": 1e300}]}, {"$activation": ["leaky_relu", {"negative_slope": -1e38}]}),
    *("relu", "exp", "identity", "float16", "float64", "squared_error", "poisson", "auto", "cupy"),
]


def checksum_of(document, network):
    """The checksum in `pipeline.json`, of the file of the network and the document."""
    text = json.dumps(document | {"sha256": ""}, sort_keys=True)
    return sha256(network + text.encode()).hexdigest()


def with_description(content, text, tensors=None):
    """Return the file of a network with another description, or tensors, and a checksum that fits."""
    tensors = safetensors.numpy.load(content) if tensors is None else tensors
    order = sorted(tensors, key=lambda name: (int(name.split(".")[1]), not name.endswith("weight")))
    checksum = sha256(text.encode() + b"".join(tensors[name].tobytes() for name in order)).hexdigest()
    metadata = {"format": "mlp_xp", "format_version": "1", "model": text, "sha256": checksum}
    return safetensors.numpy.save(tensors, metadata)


def description_of(content):
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]["model"]


# Damage of bytes.


def damaged_bytes(dice, content):
    """Flip, cut, insert, repeat or remove bytes."""
    kind, at = dice.randrange(6), dice.randrange(len(content) + 1)
    end = min(len(content), at + dice.choice((1, 1, 2, 8, 100)))
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + dice.choice((dice.randbytes(4), b" ", b"0", b'"', b"[", b"\xff")) + content[at:]
    if kind == 2:
        return content[:end] + content[at:end] * dice.choice((1, 1, 20)) + content[end:]
    if kind == 3:
        return content[:at] + content[end:]
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 4))):
        index = dice.randrange(len(changed))
        changed[index] = dice.choice((changed[index] ^ 1 << dice.randrange(8), ord("9"), ord("-"), 0))
    return bytes(changed)


# Damage of values.


def places(value):
    """All lists and objects in a JSON value that hold something."""
    if isinstance(value, (dict, list)):
        if value:
            yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from places(item)


def damage_values(dice, document):
    """Change something in a JSON value: replace, move, remove, rename, lengthen, nest."""
    found = list(places(document))
    container = dice.choice(found)
    key = dice.choice(list(container) if isinstance(container, dict) else range(len(container)))
    value, kind = container[key], dice.randrange(10)
    if kind == 0:
        del container[key]
    elif kind == 1:  # exchanged with a value elsewhere
        other = dice.choice(found)
        there = dice.choice(list(other) if isinstance(other, dict) else range(len(other)))
        container[key], other[there] = copy.deepcopy(other[there]), copy.deepcopy(value)
    elif kind == 2 and isinstance(container, dict):
        container[dice.choice(("", "$", key + "_", "size", "w", "y"))] = container.pop(key)
    elif kind == 2:
        container.insert(key, copy.deepcopy(value))
    elif kind == 3 and isinstance(container, list):
        container.extend(copy.deepcopy(container) * dice.choice((1, 50)))
    elif kind == 3:
        value = dice.choice(([value], {"a": value}))
        for _ in range(dice.choice((1, 50, 200))):
            value = [value]
        container[key] = value
    elif kind in (4, 5) and type(value) in (int, float) and abs(value) < 1e300:
        container[key] = dice.choice((value + 1, -value, value * 1e300, value * 1e-300, float(value), 1e308))
    elif kind == 6 and isinstance(value, str):
        container[key] = dice.choice((value + "a", value.upper(), value[1:], value * 1000, value + "\x1b"))
    elif kind == 6 and isinstance(value, bool):
        container[key] = not value
    else:
        container[key] = copy.deepcopy(dice.choice(VALUES))


def damage(dice, folder, others):
    """Damage the copy of a run."""
    pipeline, network = folder / "pipeline.json", folder / "network.safetensors"
    kind = dice.choices(range(6), (2, 8, 6, 2, 1, 1))[0]
    if kind == 0:
        path = folder / dice.choice(FILES)
        path.write_bytes(damaged_bytes(dice, path.read_bytes()))
    elif kind == 1:
        document = json.loads(pipeline.read_text())
        for _ in range(dice.choice((1, 1, 1, 2, 3))):
            damage_values(dice, document)
        pipeline.write_text(json.dumps(document))
    elif kind == 2:
        content = network.read_bytes()
        document = json.loads(description_of(content))
        for _ in range(dice.choice((1, 1, 2))):
            damage_values(dice, document)
        network.write_bytes(with_description(content, json.dumps(document)))
    elif kind == 3:
        content = network.read_bytes()
        tensors = safetensors.numpy.load(content)
        name = dice.choice(list(tensors))
        with np.errstate(all="ignore"):
            tensors[name] = tensors[name] * tensors[name].dtype.type(
                dice.choice((1e10, 1e38, -1e-40, 0.0, 1e300))
            )
        network.write_bytes(with_description(content, description_of(content), tensors))
    elif kind == 4:
        name = dice.choice(FILES)
        shutil.copy(dice.choice(others) / name, folder / name)
    else:
        path = folder / dice.choice(FILES)
        path.unlink()
        if dice.random() < 0.5:
            path.mkdir()
    if dice.random() < 0.9:
        make_checksum_fit(folder)


def make_checksum_fit(folder):
    """Write the checksum of what is in a folder, if that has one."""
    pipeline, network = folder / "pipeline.json", folder / "network.safetensors"
    try:
        document = json.loads(pipeline.read_text())
        document["sha256"] = checksum_of(document, network.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return
    pipeline.write_text(json.dumps(document))


# What must hold.


def use(folder):
    """Load a run and predict as the command does; return how far that went."""
    try:
        run = load_run(folder)
    except DataError as error:
        assert_message(error)
        return "refused"
    reached = "loaded"
    try:
        predictions = run.predict(TABLE)
        assert len(predictions) == len(TABLE)
        assert np.isfinite(predictions.select(pl.selectors.numeric()).to_numpy()).all()
        assert predictions.write_csv()
        reached = "predicted"
        table_notes(run, TABLE, run.read(TABLE))
        scores, baseline = run.evaluate(TABLE)
        assert scores.keys() == baseline.keys()
        reached = "scored"
        run.predict(TABLE.with_columns(size=pl.Series([1.0, None, 3e38, 0.0, 1e308, 1.0])))
    except DataError as error:
        assert_message(error)
    return reached


def assert_message(error):
    """The message is one line that cannot control a terminal."""
    text = str(error)
    assert len(text) < 200_000
    assert not any(character < " " or "\x7f" <= character < "\xa0" for character in text), text


FORBIDDEN = (
    *(
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.system",
        "pty.spawn",
    ),
    *(
        "subprocess.Popen",
        "socket.",
        "urllib.",
        "http.",
        "ftplib.",
        "ctypes.",
        "pickle.",
        "marshal.",
        "shutil.",
    ),
    *(
        "os.remove",
        "os.rename",
        "os.mkdir",
        "os.chmod",
        "os.link",
        "os.symlink",
        "os.truncate",
        "compile",
        "exec",
    ),
)


class Watch:
    """Notes what is opened outside a folder, and started, while it is on."""

    def __init__(self, folder):
        self.allowed, self.is_on, self.seen = str(folder), False, []
        sys.addaudithook(self.note)

    def note(self, event, arguments):
        if not self.is_on:
            return
        if event == "open":
            path, mode, _ = arguments
            inside = isinstance(path, (str, bytes)) and str(Path(str(path)).absolute()).startswith(
                self.allowed
            )
            if not inside or (mode is not None and set(mode) & set("wax+")):
                self.seen.append((event, str(arguments)))
        elif event.startswith(FORBIDDEN):
            self.seen.append((event, str(arguments)[:200]))


def main(source, count, seed):
    """Damage copies of runs, and return how many of them were refused, loaded, predicted with and scored."""
    scratch = Path(source)
    runs = [scratch / name for name in write_runs(scratch)]
    for path in runs:
        assert use(path) == "scored", path  # also imports what is imported at the first use
    dice, watch, found = random.Random(seed), Watch(scratch.absolute()), {}
    warnings.simplefilter("error")
    folder = scratch / "run"
    for number in range(count):
        shutil.copytree(dice.choice(runs), folder)
        damage(dice, folder, runs)
        size = sum(path.stat().st_size for path in folder.iterdir())
        traced = number % N_RUNS_PER_TRACE == 0
        if traced:
            tracemalloc.start()
        begin, watch.is_on = time.process_time(), True
        try:
            reached = use(folder)
            watch.is_on, seconds = False, time.process_time() - begin
            peak = tracemalloc.get_traced_memory()[1] if traced else 0
            assert seconds < MAX_SECONDS, seconds
            assert peak < MAX_BYTES_PER_BYTE * size + MAX_BYTES_BESIDE, (peak, size)
            assert not watch.seen, watch.seen
        except BaseException as error:
            kept = scratch / f"escape-{number}"
            shutil.copytree(folder, kept)
            error.add_note(f"number {number} with seed {seed}: see {kept}")
            raise
        finally:
            watch.is_on = False
            tracemalloc.stop()
        found[reached] = found.get(reached, 0) + 1
        shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
