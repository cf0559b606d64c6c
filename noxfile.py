"""What is checked before a change lands; ``nox`` alone runs what every change has to pass."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)  # from the classifiers: one source
GROUPS = {
    name: nox.project.dependency_groups(PYPROJECT, name) for name in PYPROJECT["dependency-groups"]
}
BENCHMARKS = ("engine", "http", "inproc", "recovery", "growth", "roundtrips")
# Tests of other people's frameworks and servers around the library.
SURROUNDINGS = ("tests/answers", "tests/servers")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
# More than cores: the tests wait for a database most of the time.
PARALLEL_TESTS = "3"

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
# The oldest Python and the newest one: what differs, differs there. `nox -s tests` runs all.
nox.options.sessions = [
    "lint",
    f"tests-{PYTHONS[0]}",
    f"tests-{PYTHONS[-1]}",
    f"crash-{PYTHONS[0]}",
    "package",
]
nox.options.download_python = "never"
# Interpreters that a machine does not have are skipped, and named.
nox.options.error_on_missing_interpreters = False

# Where pyenv keeps interpreters that it does not put on the path.
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
if PYENV.is_dir():
    folders = [str(folder) for folder in sorted(PYENV.glob("3.*/bin"))]
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *folders])


@nox.session(python=PYTHONS[0])
def lint(session: nox.Session) -> None:
    """Check style, types, the direction of imports, and the size of files and functions."""
    session.install("-e", ".[fastapi]", *GROUPS["lint"])
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy")
    session.run("mypy", "tests/typing", "examples/orders")
    session.run("lint-imports", "--no-logo")
    refuse_long_code(session)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on one Python, all but those that kill processes.

    Those of frameworks and servers are run on the oldest one alone.
    """
    session.install("-e", ".[fastapi]", *GROUPS["test"])
    left_out = [] if session.python == PYTHONS[0] else [f"--ignore={path}" for path in SURROUNDINGS]
    if left_out:
        session.log(f"{', '.join(SURROUNDINGS)}: run on Python {PYTHONS[0]} alone")
    run_pytest(session, *left_out)


@nox.session(python=PYTHONS)
def crash(session: nox.Session) -> None:
    """Run the tests that kill processes, one after the other: they measure times."""
    session.install("-e", ".[fastapi]", *GROUPS["test"])
    session.run("pytest", "tests/crash", *session.posargs)


@nox.session(python=PYTHONS)
def frameworks(session: nox.Session) -> None:
    """Run the tests of frameworks that have no adapter, with the stack around them."""
    session.install("-e", ".[starlette]", *GROUPS["frameworks"])
    session.run("pytest", "tests/frameworks", *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest version of every direct dependency; needs uv."""
    session.install("--resolution=lowest-direct", ".[fastapi]", *GROUPS["test"])
    run_pytest(session)


@nox.session(python=PYTHONS[0])
def pgbouncer(session: nox.Session) -> None:
    """Run the tests that use Postgres through a pooler in transaction mode; needs PgBouncer."""
    session.install("-e", ".[fastapi]", *GROUPS["test"])
    session.run("pytest", *session.posargs, env={"ASGI_DURABLE_TEST_PGBOUNCER": "1"})


@nox.session(python=PYTHONS[0])
def package(session: nox.Session) -> None:
    """Build the wheel, and run the example from it in an environment that has nothing else."""
    session.install("build")
    built = Path(session.create_tmp()).resolve()
    shutil.rmtree(built)
    session.run("python", "-m", "build", "--wheel", "--outdir", str(built), silent=True)
    (wheel,) = built.glob("*.whl")
    session.run("python", "-m", "venv", str(built / "empty"))
    python = str(built / "empty" / "bin" / "python")
    session.run(python, "-m", "pip", "install", "-q", f"{wheel}[fastapi]", external=True)
    script = Path("tests/package/run_example.py").resolve()
    example = Path("examples").resolve()
    # From outside the checkout, so that nothing is imported from it by accident.
    session.chdir(built)
    session.run(python, str(script), str(example), str(built), external=True)


@nox.session(python=PYTHONS[0])
def benchmarks(session: nox.Session) -> None:
    """Print how fast everything is, beside peers and hand-written limits; short by default."""
    session.install("-e", ".[fastapi,postgres]", *GROUPS["benchmarks"])
    arguments = session.posargs or ["--short", "--json", "benchmarks/results"]
    for name in BENCHMARKS:
        session.run("python", "-m", f"benchmarks.{name}", *arguments)


def run_pytest(session: nox.Session, *arguments: str) -> None:
    """Run all tests but those that kill processes."""
    session.run(
        "pytest", "-n", PARALLEL_TESTS, "--ignore=tests/crash", *arguments, *session.posargs
    )


def refuse_long_code(session: nox.Session) -> None:
    """Fail if a file or a function of the library is too long to be taken in at once."""
    for path in [*Path("asgi_durable").rglob("*.py"), *Path("adapters").rglob("*.py")]:
        text = path.read_text()
        if text.count("\n") > MAX_FILE_LINES:
            session.error(f"{path} has more than {MAX_FILE_LINES} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                docstring = ast.get_docstring(node) or ""
                lines = (node.end_lineno or 0) - node.lineno - docstring.count("\n")
                if lines > MAX_FUNCTION_LINES:
                    session.error(f"{path}: {node.name} has more than {MAX_FUNCTION_LINES} lines")
