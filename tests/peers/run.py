"""Run vLLM's own HTTP tests against vLLM's server and against this one, and compare.

    python -m tests.peers.run [--folder build/peers] [--only plain|fusion] [-k EXPRESSION] [FILE ...]

Every test starts as vLLM's engineers wrote it. Only what passes on plain vLLM and not here counts: each such test must
have its reason in `reasons.yaml`, and every reason must still be needed. Writes docs/peers.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from tests.peers.source import VERSION, prepare

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "peers.md"
PEERS = ("plain", "fusion")
FILES = (HERE / "files.txt").read_text().split()
STARTS_A_SERVER = re.compile(r"\bRemote\w*Server\b")
Outcomes = dict[str, str]


def run(peer: str, folder: Path, arguments: Iterable[str], names: Iterable[str]) -> Outcomes:
    """Run the test files against one server and return each test's outcome."""
    outcomes = folder / f"{peer}.jsonl"
    outcomes.unlink(missing_ok=True)
    environment = os.environ | {
        "PEER": peer,
        "PEER_OUTCOMES": str(outcomes),
        "PYTHONPATH": os.pathsep.join(map(str, (folder, HERE, folder / "test-needs"))),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "1",
    }
    # Their outermost conftest is for engines in the test's own process, and imports what only those need.
    options = [
        "-p",
        "plugin",
        "--confcutdir=tests/entrypoints",
        "-c",
        "pytest.ini",
        "-q",
        "--timeout=300",
        "--continue-on-collection-errors",
    ]
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    with (folder / f"{peer}.log").open("w") as log:
        tests = [f"tests/entrypoints/{name}" for name in names]
        subprocess.run([*command, *tests], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    return read(outcomes)


def read(outcomes: Path) -> Outcomes:
    """Return the outcomes that the plugin noted, by `file::test[parameters]` from tests/entrypoints on."""
    if not outcomes.is_file():
        return {}
    noted = [json.loads(line) for line in outcomes.read_text().splitlines()]
    # A test whose tear-down fails has two.
    return {each["test"]: each["outcome"] for each in noted}


def reason_for(test: str, reasons: dict[str, str]) -> str | None:
    """Return the key of the reason that a test has: the whole name, or its beginning."""
    return next((key for key in reasons if test == key or test.startswith(key)), None)


def page(plain: Outcomes, fusion: Outcomes, reasons: dict[str, str], entrypoints: Path) -> str:
    """Return docs/peers.md.

    Raises:
        ValueError: a file that starts a server is neither run nor left out with a reason.
    """
    counts = {key: Counter(outcomes.values()) for key, outcomes in (("vLLM's server", plain), ("this server", fusion))}
    lines = ["| | passed | failed | error | skipped |", "|---|---:|---:|---:|---:|"]
    for name, count in counts.items():
        cells = [str(count[kind]) for kind in ("passed", "failed", "error", "skipped")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    found = Counter(reason_for(test, reasons) for test in differing(plain, fusion))
    rows = ["| test | how many | why |", "|---|---:|---|"]
    rows += [f"| `{key}` | {found[key]} | {reasons[key]} |" for key in reasons if found[key]]
    text = (HERE / "page.md").read_text()
    others = "\n".join(_left_out(entrypoints))
    parts = {"counts": "\n".join(lines), "reasons": "\n".join(rows) if found else "Nothing.", "others": others}
    return text.format(version=VERSION, files=len(FILES), **parts)


def _left_out(entrypoints: Path) -> Iterator[str]:
    """Yield a table of the files that start a server and are not run."""
    why: dict[str, str] = yaml.safe_load((HERE / "left_out.yaml").read_text())
    files, tests = Counter[str](), Counter[str]()
    for path in sorted(entrypoints.rglob("test_*.py")):
        name, text = path.relative_to(entrypoints).as_posix(), path.read_text()
        if name in FILES or not STARTS_A_SERVER.search(text):
            continue
        key = next((key for key in why if name.startswith(key)), None)
        if key is None:
            raise ValueError(f"{name} starts a server: put it into files.txt, or into left_out.yaml with the reason")
        files[key] += 1
        tests[key] += len(re.findall(r"^ *(?:async )?def test_", text, re.MULTILINE))
    yield from ("| files | how many | test functions | they need |", "|---|---:|---:|---|")
    yield from (f"| `{key}` | {files[key]} | {tests[key]} | {why[key]} |" for key in why if files[key])


def differing(plain: Outcomes, fusion: Outcomes) -> list[str]:
    """Return the tests that pass on vLLM's server and not here."""
    return [test for test, outcome in plain.items() if outcome == "passed" and fusion.get(test) != "passed"]


def main() -> int:
    """Run, compare, write the page; 1 where a difference has no reason, or a reason no difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="below tests/entrypoints; all of them if left out")
    parser.add_argument("--folder", type=Path, default=Path("build/peers"))
    parser.add_argument("--only", choices=PEERS, help="run one server only; the other's last outcomes are read")
    parser.add_argument("-k", dest="expression", default="")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if given.only != PEERS[1]:
        prepare(folder)
    arguments = ["-k", given.expression] if given.expression else []
    for peer in (given.only,) if given.only else PEERS:
        run(peer, folder, arguments, given.files or FILES)
    plain, fusion = (read(folder / f"{peer}.jsonl") for peer in PEERS)
    reasons: dict[str, str] = yaml.safe_load((HERE / "reasons.yaml").read_text()) or {}
    worse = differing(plain, fusion)
    bare = [test for test in worse if reason_for(test, reasons) is None]
    idle = set(reasons) - {reason_for(test, reasons) for test in worse}
    for name, outcomes in (("plain vLLM", plain), ("this server", fusion)):
        print(f"{name}: {dict(Counter(outcomes.values()))}")
    print(*(f"passes on plain vLLM, not here: {test}" for test in bare), sep="\n")
    whole = not (given.files or given.only or given.expression)
    if whole:
        PAGE.write_text(page(plain, fusion, reasons, folder / "tests" / "entrypoints"))
        print(*(f"a reason that nothing needs any more: {key}" for key in sorted(idle)), sep="\n")
    return 1 if bare or (whole and idle) else 0


if __name__ == "__main__":
    sys.exit(main())
