"""The checks of a change; ``nox`` alone runs those that every change has to pass."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")
# Those of the classifiers have to pass; the one after them is tried where a machine has it.
PYTHONS = list(dict.fromkeys([*nox.project.python_versions(PYPROJECT), "3.14"]))
GROUPS = {
    name: nox.project.dependency_groups(PYPROJECT, name) for name in PYPROJECT["dependency-groups"]
}
BENCHMARKS = ("codec", "engine", "http", "inproc", "recovery", "growth", "roundtrips")
# Tests of other people's frameworks and servers around the library.
SURROUNDINGS = (
    "tests/adapters",
    "tests/answers",
    "tests/frameworks",
    "tests/servers",
    "tests/project/test_examples.py",
)
# How pytest ends.
SUCCESS, NO_TESTS = 0, 5
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
# More than cores: the tests wait for a database most of the time. The slowest come late, so who
# is through takes over from who is not.
IN_PARALLEL = ("-n", "4", "--dist", "worksteal")

# Where pyenv keeps interpreters that it does not put on the path.
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
if PYENV.is_dir():
    folders = [str(folder) for folder in sorted(PYENV.glob("3.*/bin"))]
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *folders])


# Tests start processes by the hundred: without a bytecode cache each compiles all its imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# uv shall trust whom the system trusts, as pip does; the second name is the older one.
os.environ.setdefault("UV_SYSTEM_CERTS", "1")
os.environ.setdefault("UV_NATIVE_TLS", "1")


def is_here(python: str) -> bool:
    """Return whether the machine has a Python that starts; what pyenv calls one may not."""
    folders = os.environ["PATH"].split(os.pathsep)
    found = filter(None, (shutil.which(f"python{python}", path=folder) for folder in folders))
    return any(
        subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode == 0
        for name in found
    )


HERE = [python for python in PYTHONS if is_here(python)] or PYTHONS[:1]
ABSENT = [python for python in PYTHONS if python not in HERE]
# A difference between Pythons shows between the oldest and the newest one. The tests of whole
# processes run on the newest: they have a part of everything.
OLDEST, NEWEST = HERE[0], HERE[-1]

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = [
    "lint",
    *(f"tests-{python}" for python in PYTHONS if python in {OLDEST, *ABSENT}),
    f"crash-{NEWEST}",
    "package",
    "left_out",
]
nox.options.download_python = "never"
# Interpreters that a machine does not have are skipped, and named.
nox.options.error_on_missing_interpreters = False


@nox.session(python=OLDEST)
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

    Those of frameworks and servers are run on the oldest one alone; ``matrix`` has the others.
    """
    session.install("-e", ".[fastapi]", *GROUPS["test"])
    left_out = [] if session.python == OLDEST else [f"--ignore={path}" for path in SURROUNDINGS]
    run_pytest(session, *left_out)


@nox.session(python=PYTHONS)
def crash(session: nox.Session) -> None:
    """Run the tests that kill processes; those that measure times one after the other."""
    session.install("-e", ".[fastapi]", *GROUPS["test"])
    # The chosen tests may be of one kind alone.
    fine = [SUCCESS, NO_TESTS] if session.posargs else [SUCCESS]
    for options in (
        ("-m", "measures_time"),
        ("-m", "not measures_time", "-n", "3", "--dist", "worksteal"),
    ):
        session.run("pytest", "tests/crash", *options, *session.posargs, success_codes=fine)


@nox.session(python=PYTHONS)
@nox.parametrize("versions", ["lowest", "newest"], ids=["lowest", "newest"])
def matrix(session: nox.Session, versions: str) -> None:
    """Run the tests of frameworks and servers with their lowest or newest versions.

    Also with those frameworks and servers that the other sessions do without: Quart, Django,
    Falcon, BlackSheep, Connexion; daphne, and hypercorn on trio. The lowest versions need uv.
    """
    install(session, ".[all]", *GROUPS["matrix"], lowest=versions == "lowest")
    session.run("pytest", *IN_PARALLEL, *(session.posargs or SURROUNDINGS))


@nox.session(python=OLDEST)
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest version of every direct dependency; needs uv."""
    install(session, ".[fastapi]", *GROUPS["test"], lowest=True)
    run_pytest(session)


@nox.session(python=OLDEST)
def pgbouncer(session: nox.Session) -> None:
    """Run the tests that use Postgres through a pooler in transaction mode; needs PgBouncer."""
    session.install("-e", ".[fastapi]", *GROUPS["test"])
    session.run("pytest", *session.posargs, env={"ASGI_DURABLE_TEST_PGBOUNCER": "1"})


@nox.session(python=OLDEST)
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


@nox.session(python=OLDEST)
def benchmarks(session: nox.Session) -> None:
    """Print how fast everything is, beside peers and hand-written limits; short by default.

    With ``--against REVISION`` only this checkout is compared with that revision.
    """
    session.install("-e", ".[fastapi,postgres]", *GROUPS["benchmarks"])
    if "--against" in session.posargs:
        session.run("python", "-m", "benchmarks.check", *session.posargs)
        return
    arguments = session.posargs or ["--short", "--json", "benchmarks/results"]
    for name in BENCHMARKS:
        session.run("python", "-m", f"benchmarks.{name}", *arguments)


@nox.session(python=False)
def left_out(session: nox.Session) -> None:
    """Say what ``nox`` alone has not run of all that there is, and why."""
    session.log("Not run by `nox` alone:")
    for line in find_left_out():
        session.log(f"- {line}")


def find_left_out() -> Iterator[str]:
    """Yield what this machine cannot run, and what takes more time than each change is worth."""
    needs_uv = "" if has_uv() else " (needs uv, which is not installed)"
    for python in ABSENT:
        yield f"Python {python}: this machine has none"
    if NEWEST != OLDEST:
        yield f"tests on Pythons but {OLDEST}: `nox -s tests`"
        yield f"killed processes on Pythons but {NEWEST}: `nox -s crash`"
        yield f"frameworks, servers and adapters on Pythons but {OLDEST}: `nox -s matrix`"
    yield "Quart, Django, Falcon, BlackSheep, Connexion; daphne, hypercorn on trio: `nox -s matrix`"
    yield f"the lowest versions of frameworks and servers{needs_uv}: `nox -s matrix`"
    yield f"the lowest version of every dependency{needs_uv}: `nox -s lowest`"
    needs_pgbouncer = "" if find_pgbouncer() else " (which is not installed)"
    yield f"Postgres behind PgBouncer{needs_pgbouncer}: `nox -s pgbouncer`"


def find_pgbouncer() -> str | None:
    """Return the path of PgBouncer, which Debian puts where only root looks."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


def has_uv() -> bool:
    """Return whether environments are made by uv, which can choose the lowest versions."""
    return bool(shutil.which("uv") or find_spec("uv"))


def install(session: nox.Session, *requirements: str, lowest: bool) -> None:
    """Install the lowest or the newest versions; skip the session where the lowest need uv."""
    if not lowest:
        session.install(*requirements)
    elif session.venv_backend == "uv":
        session.install("--resolution=lowest-direct", *requirements)
    else:
        session.skip("the lowest versions need uv: pip install uv")


def run_pytest(session: nox.Session, *arguments: str) -> None:
    """Run all tests but those that kill processes."""
    session.run("pytest", *IN_PARALLEL, "--ignore=tests/crash", *arguments, *session.posargs)


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
