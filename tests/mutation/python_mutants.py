"""Mutants of the package's modules: is there a test that fails when the code is wrong?

    PYTHONPATH=tests python -m mutation.python_mutants --sample 300 xent_metrics/sums xent_metrics/scoring

Cosmic Ray's operators make the mutants, in a copy of the tree. A mutant of ``xent_metrics/<room>/x.py`` has to pass the tests
of its own module, ``tests/<room>/test_x*.py`` and its doctests, and then the others of its room that aren't distributed. Every
run is a fork of a process that has imported torch, which takes longer than most of the tests. Results go into
build/mutation/results.jsonl, and ``--again`` reruns those of them that survived.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import random
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from mutation.runner import ROOT, Runner

RESULTS = ROOT / "build" / "mutation" / "results.jsonl"
#: Tests outside of a room that are nearest to it, run after the room's own.
MORE_TESTS = {
    "sums": ["tests/test_collection.py"],
    "scoring": [],
    "metrics": ["tests/test_functional.py", "tests/test_plots.py"],
}

DISTRIBUTED = re.compile(r"^from support.distributed import .*\brun\b", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """The `occurrence`-th change that an operator of Cosmic Ray's makes to a module."""

    module: str
    operator: str
    occurrence: int
    line: int

    @property
    def room(self) -> str:
        return self.module.split("/")[1]

    @property
    def own_tests(self) -> list[str]:
        """The module's test files; `test_scores.py` is none of `score.py`'s, `test_score_fuzz.py` is."""
        folder, stem = ROOT / "tests" / self.room, Path(self.module).stem
        files = sorted(path for path in folder.glob("test_*.py") if re.match(rf"test_{stem}(_.*)?\.py", path.name))
        return [str(path.relative_to(ROOT)) for path in files] + [self.module]

    @property
    def more_tests(self) -> list[str]:
        """The room's other test files, without those of jobs on several processes, which take minutes."""
        room = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / self.room).glob("test_*.py"))
        others = [path for path in room + MORE_TESTS.get(self.room, []) if path not in self.own_tests]
        return [path for path in others if not DISTRIBUTED.search((ROOT / path).read_text())]

    def text(self) -> str:
        """The module's text with the change."""
        from cosmic_ray.mutating import mutate_code

        return mutate_code((ROOT / self.module).read_text(), _operators()[self.operator], self.occurrence)


def _operators() -> dict[str, object]:
    """Cosmic Ray's operators but for those that want arguments, and one that it lacks."""
    from cosmic_ray.plugins import get_operator, operator_names

    classes = {name.partition("/")[2]: get_operator(name) for name in operator_names()}
    return {name: made() for name, made in classes.items() if not made.arguments()} | {
        "RemoveStatement": RemoveStatement()
    }


class RemoveStatement:
    """Replace a call, a `raise` or an augmented assignment by `pass`."""

    def mutation_positions(self, node) -> Iterator[tuple]:
        if node.type == "simple_stmt" and self._does_something(node.children[0]):
            yield node.start_pos, node.end_pos

    def _does_something(self, node) -> bool:
        if node.type == "expr_stmt":
            return node.children[1].type == "operator" and node.children[1].value != "="
        return node.type in ("raise_stmt", "atom_expr")

    def mutate(self, node, index):
        from parso.python.tree import Keyword

        first = node.children[0].get_first_leaf()
        node.children[0] = Keyword("pass", first.start_pos, first.prefix)
        return node


def every_mutant(modules: Iterable[str]) -> list[list[Mutant]]:
    """The mutants, those of the same place together: a place with a dozen of them counts no more than others in a sample."""
    from cosmic_ray.ast import ast_nodes, get_ast

    places: dict[tuple, list[Mutant]] = {}
    for module in modules:
        nodes = list(ast_nodes(get_ast((ROOT / module).read_text())))
        for name, operator in _operators().items():
            found = [start for node in nodes for start, _ in operator.mutation_positions(node)]
            for occurrence, start in enumerate(found):
                places.setdefault((module, start), []).append(Mutant(module, name, occurrence, start[0]))
    return list(places.values())


def changes_something(mutant: Mutant) -> bool:
    """False if nothing but annotations and docstrings differs, which nobody evaluates, or if it isn't Python."""
    try:
        changed = ast.parse(mutant.text())
    except SyntaxError:
        return False
    return _meaning(changed) != _meaning(ast.parse((ROOT / mutant.module).read_text()))


def _meaning(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def killer(runner: Runner, mutant: Mutant, own_tests_only: bool) -> str:
    """The first test that fails with the mutant; empty if it survives."""
    with runner.holding(mutant.module, mutant.text()):
        return runner.failure(mutant.own_tests) or (
            "" if own_tests_only else runner.failure(mutant.more_tests, 900, 1800)
        )


def drawn(options: argparse.Namespace) -> Iterator[Mutant]:
    """One mutant of each of so many places, drawn at random."""
    paths = [ROOT / name for name in options.modules]
    files = sorted(file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path]))
    places = every_mutant(str(file.relative_to(ROOT)) for file in files)
    draw = random.Random(options.seed)
    draw.shuffle(places)
    one_each = (mutant for mutant in map(draw.choice, places) if changes_something(mutant))
    for number, mutant in enumerate(one_each):
        if number == options.sample:
            return
        yield mutant


def report(killers: dict[Mutant, str]) -> None:
    """The share killed, by room."""
    rooms = sorted({mutant.room for mutant in killers})
    for name, among in [*((room, [room]) for room in rooms), ("all", rooms)]:
        of_room = [killer for mutant, killer in killers.items() if mutant.room in among]
        killed = len(of_room) - of_room.count("")
        share = f"{killed} of {len(of_room)} killed, {killed / len(of_room):.1%}"
        print(f"{name}: {share}; {of_room.count('time')} of them took too long")


def read() -> dict[Mutant, str]:
    """The results of the last run."""
    results = map(json.loads, RESULTS.read_text().splitlines())
    return {Mutant(**result["mutant"]): result["killer"] for result in results}


def write(killers: dict[Mutant, str]) -> None:
    results = [{"mutant": dataclasses.asdict(mutant), "killer": killer} for mutant, killer in killers.items()]
    RESULTS.write_text("".join(json.dumps(result) + "\n" for result in results))


def run(mutants: list[Mutant], killers: dict[Mutant, str], options: argparse.Namespace) -> None:
    """Try each of the mutants and add its killer to `killers`."""
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(Path(folder), XENT_METRICS_PLUGINS="emd,focal")
        for tests in sorted({tuple(mutant.own_tests) for mutant in mutants} if not options.unchecked else ()):
            assert not runner.failure(list(tests)), f"without a mutant:\n{runner.output.read_text()}"
        for mutant in mutants:
            started = time.monotonic()
            killers[mutant] = killer(runner, mutant, options.own_tests_only)
            write(killers)
            took, place = time.monotonic() - started, f"{mutant.module}:{mutant.line}"
            print(f"{took:6.1f} s  {place} {mutant.operator}: {killers[mutant] or 'SURVIVED'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rooms = [f"xent_metrics/{room}" for room in MORE_TESTS]
    parser.add_argument("modules", nargs="*", help="files or folders", default=rooms)
    parser.add_argument("--sample", type=int, default=-1, help="so many, drawn at random; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="the survivors of the last run alone")
    parser.add_argument("--own-tests-only", action="store_true", help="not those of the rest of the room")
    parser.add_argument("--unchecked", action="store_true", help="don't run the tests of the unchanged modules first")
    options = parser.parse_args()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    killers = read() if options.again else {}
    run(
        [mutant for mutant in killers if not killers[mutant]] if options.again else list(drawn(options)),
        killers,
        options,
    )
    report(killers)


if __name__ == "__main__":
    main()
