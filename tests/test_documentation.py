"""What the documentation says is there, is there; what it shows, runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hpcrl
from hpcrl.cli.pipeline_file import pipeline_function
from hpcrl.launch.request import GUARD
from hpcrl.launch.submission import check_segments
from hpcrl.scheduler.site import site_from_text
from hpcrl.segments import ONLY, is_one_world, segments

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(hpcrl.__path__, "hpcrl.")
    if not module.name.endswith(("__main__", "_kernels"))
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failures == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [target for target in targets if not target.startswith(("http://", "https://"))]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert missing == []


def test_the_table_of_what_to_open_names_real_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    paths = set(re.findall(r"`((?:hpcrl|kernels|docs|tests|pipelines)/[\w./]*)`", text))
    assert len(paths) > 20
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_the_readme_names_real_targets_and_commands() -> None:
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make ([\w-]+)$", text, re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert [target for target in targets if f"\n{target}:" not in makefile] == []
    commands = set(re.findall(r"hpcrl (\w+) +(?:pipelines/|runs/|--site)", text))
    from hpcrl.cli import main

    for command in commands:
        assert main([command, "--help"]) == 0 if command in ("run", "show") else True
    assert commands == {"run", "show", "status", "replay", "report", "logs", "cancel", "doctor"}


def test_the_readme_pipeline_is_a_pipeline() -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    namespace: dict = {}
    exec(compile(block.group(1), "README.md", "exec"), namespace)
    assert namespace["ppo_cartpole"]().name == "ppo-cartpole"


def test_the_readme_table_is_made_from_the_committed_results() -> None:
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "table.py", "--check"], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("module", ["hpcrl", "hpcrl.pipeline", "hpcrl.stages", "hpcrl.report.status", "hpcrl.cli"])
def test_configuration_and_status_import_no_pytorch_and_no_mpi(module: str) -> None:
    code = f"import sys, {module}; hpcrl = sys.modules['hpcrl']; hpcrl.Pipeline; hpcrl.PPO\n"
    code += "sys.exit(','.join({'torch', 'mpi4py', 'gymnasium'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{module} imports {done.stderr.strip()}"


def shipped_segments() -> set[str]:
    """The segments of the pipelines that need no argument, and the guard, which each has when it plays as jobs."""
    found = {GUARD.segment}
    for path in sorted((ROOT / "pipelines").glob("*.py")):
        function = pipeline_function(path)
        if all(one.default is not one.empty for one in inspect.signature(function).parameters.values()):
            pipeline = function()
            found |= {ONLY} if is_one_world(pipeline) else {segment.name for segment in segments(pipeline)}
    return found


@pytest.mark.parametrize("page", [*PAGES, ROOT / "slurm" / "site.example.toml"], ids=lambda page: page.name)
def test_segments_in_site_files_are_those_of_shipped_pipelines(page: Path) -> None:
    """Copied into a site file, any other name is refused."""
    named = set(re.findall(r"^(?:# )?\[segments\.([\w.]+)\]", page.read_text(), re.MULTILINE)) - {"NAME"}
    assert named <= shipped_segments()


@pytest.mark.parametrize("page", ["docs/site.md", "docs/tutorials/laptop_to_cluster.md"])
def test_site_files_in_the_documentation_are_site_files(page: str) -> None:
    found = re.findall(r"```toml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len(found) >= 2
    for text in found:
        site = site_from_text(text)
        if set(site.segments) & {"rollout", "advantage"}:
            check_segments(pipeline_function(ROOT / "pipelines" / "ppo_apart.py")(), site)
