"""The README shows the library as it is."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.paths import REPOSITORY

TEXTS = ["README.md", "docs/guide.md"]
LINKING = ["CONTRIBUTING.md", "benchmarks/README.md", "docs/from-dbos.md"]


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / name).read_text(), re.DOTALL)


@pytest.mark.parametrize("name", TEXTS)
def test_its_python_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAYLOAD_KEYS", base64.b64encode(bytes(32)).decode())
    # Frameworks look their handlers' modules up.
    module = ModuleType("readme")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    blocks = python_blocks(name)
    assert blocks
    for block in blocks:
        exec(compile(block, name, "exec"), vars(module))


@pytest.mark.parametrize("name", [*TEXTS, *LINKING])
def test_its_links_lead_somewhere(name: str) -> None:
    text = (REPOSITORY / name).read_text()

    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [link for link in links if not ((REPOSITORY / name).parent / link).exists()] == []


def test_the_ci_runs_the_test_command_as_printed() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    script = (REPOSITORY / ".ci" / "run").read_text()

    marker = "<!-- the test command -->"
    assert readme.count(marker) == 1
    assert marker in script
