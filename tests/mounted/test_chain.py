"""Ten steps, each a result based on the one before: what has changed is built anew, and each step once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CHAIN = Path(__file__).parents[2] / "scripts/chain"


@pytest.fixture
def steps(unmounted, folder):
    steps = folder / "steps"
    steps.mkdir()
    config = folder / "config.toml"
    config.write_text(f"""
        [builder.step]
        command = ["sh", "-c", '. "{steps}/$ZFSFS_ID"']
    """)
    unmounted.mount(0.1, "--config", str(config))
    return steps


def commands(*, seventh: str = "step 7", last: str = "step 10") -> list[str]:
    names = [f"step {number}" for number in range(1, 7)] + [seventh, "step 8", "step 9", last]
    return [f"echo '{name}' >> lines" for name in names]


def start(tree, steps, chain: list[str]) -> subprocess.Popen:
    return subprocess.Popen([CHAIN, tree.path, "step", steps, *chain], stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> str:
    ident, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    return ident.strip()


def test_changing_the_seventh_step_builds_four_anew(unmounted, steps):
    tree = unmounted
    first = ended(start(tree, steps, commands()))
    assert (tree / "results" / first / "lines").read_text().splitlines() == [f"step {n}" for n in range(1, 11)]
    assert len(tree.events("published")) == 10
    assert ended(start(tree, steps, commands())) == first
    assert len(tree.events("published")) == 10
    other = ended(start(tree, steps, commands(seventh="another")))
    assert (tree / "results" / other / "lines").read_text().splitlines()[6] == "another"
    assert len(tree.events("published")) == 14


def test_fifty_chains_at_once_build_each_step_once(unmounted, steps):
    tree = unmounted
    chains = [start(tree, steps, commands(last=f"last {number % 3}")) for number in range(50)]
    idents = {ended(chain) for chain in chains}
    assert len(idents) == 3
    assert len(os.listdir(tree / "results")) == 12
    assert len(tree.events("builder-started")) == 12
    assert len(tree.events("published")) == 12


def test_a_step_that_fails_ends_its_chain_and_shows_its_log(unmounted, steps):
    chain = [*commands()[:2], "echo what is wrong; exit 3", *commands()[3:]]
    done = subprocess.run([CHAIN, unmounted.path, "step", steps, *chain], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "what is wrong" in done.stderr
    assert len(os.listdir(unmounted / "results")) == 2
