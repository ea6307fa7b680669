"""`make mutants`: faults put into the modules that decide, one at a time, and which of them the quick tests notice.

    python -m tests.mutants                  300 faults, drawn evenly from all that mutmut would make
    python -m tests.mutants --count 1000     more of them
    python -m tests.mutants --seed 1         others

mutmut makes the faults, finds the tests that reach each, and runs them ([tool.mutmut] in pyproject.toml says where).
What this adds is the draw, for they are some ten thousand. It works in a copy of the tree, and prints the score and the
fault of every survivor.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTICED = ("killed", "timeout", "suspicious", "segfault")  # a test fails, or never ends
RESULT = re.compile(r"^\s+(\S+): ([a-z ]+)$", re.MULTILINE)


def mutmut(tree: Path, *arguments: str) -> str:
    """What mutmut prints in a tree. Raises RuntimeError, with its last lines, where it fails."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"mutmut {arguments[0]} failed: {done.stdout[-3000:]}")
    return done.stdout


def copied(to: Path) -> Path:
    """The files that git tracks, as they are now."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def made(tree: Path) -> list[str]:
    """The names of all faults that mutmut makes of the modules that decide."""
    code = "from mutmut.__main__ import copy_src_dir, copy_also_copy_files, setup_source_paths, create_mutants\n"
    code += "import os; os.makedirs('mutants', exist_ok=True); copy_src_dir(); copy_also_copy_files()\n"
    code += "setup_source_paths(); create_mutants(2)"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, stdout=subprocess.DEVNULL)
    return sorted(name for name, _ in RESULT.findall(mutmut(tree, "results", "--all", "true")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))
        names = made(tree)
        chosen = random.Random(given.seed).sample(names, min(given.count, len(names)))
        print(f"{len(names)} faults can be made; {len(chosen)} of them are tried", flush=True)
        mutmut(tree, "run", *chosen)
        results = dict(RESULT.findall(mutmut(tree, "results", "--all", "true")))
        noticed = [name for name in chosen if results[name] in NOTICED]
        for name in sorted(set(chosen) - set(noticed)):
            print(f"\n{results[name]}: {mutmut(tree, 'show', name)}")
        print(f"\n{len(noticed)} of {len(chosen)} were noticed ({len(noticed) / len(chosen):.0%})")


if __name__ == "__main__":
    main()
