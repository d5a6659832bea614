"""`tools/install.sh`: uv installs what a lock file names, and pip does where uv does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "tools/install.sh"
PIP = "--disable-pip-version-check --quiet install"
UV = "uv pip install --no-config --quiet --python other/python --require-hashes --only-binary :all: -r some.lock"
BY_PIP = f"other -m pip {PIP} --no-compile --require-hashes --only-binary :all: -r some.lock"


@dataclass
class Checkout:
    """A bare one, with programs that only say how they were called in place of Python and uv."""

    path: Path

    @property
    def uv(self) -> Path:
        return self.path / ".venv/bin/uv"

    def program(self, where: str, script: str) -> None:
        path = self.path / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\ncd "{self.path}"\n{script}\n')
        path.chmod(0o755)

    def install(self, configured: str = "", **environment: str) -> int:
        """The exit status. `configured`: what a file tells pip."""
        file = self.path / "pip.conf"
        file.write_text(configured)
        environment["PIP_CONFIG_FILE"] = str(file) if configured else os.devnull
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
        command = [self.path / "tools/install.sh", "other/python", "--only-binary", ":all:", "-r", "some.lock"]
        return subprocess.run(command, env=kept | environment, cwd="/", capture_output=True, timeout=60).returncode

    @property
    def called(self) -> list[str]:
        """What was called to install something, in order."""
        said = self.path / "called"
        return said.read_text().splitlines() if said.exists() else []


def python(name: str, *, status: int = 0, then: str = "") -> str:
    """A Python whose pip tells how it is configured, and only says what it was to install."""
    asked = f'case "$*" in *" config "*) exec {sys.executable} "$@" ;; esac'
    return f'{asked}\necho "{name} $*" >> called\n{then}\nexit {status}'


def uv(status: int = 0) -> str:
    """A uv that only says what it was to install, and from where."""
    return f'echo "uv $* from ${{UV_DEFAULT_INDEX-}}" >> called\nexit {status}'


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """uv is there, and installs; so does pip."""
    made = Checkout(tmp_path)
    (tmp_path / "tools").mkdir()
    shutil.copy(SCRIPT, tmp_path / "tools")
    made.program(".venv/bin/python", python("own"))
    made.program("other/python", python("other"))
    made.program(".venv/bin/uv", uv())
    return made


def test_uv_installs(checkout: Checkout) -> None:
    assert checkout.install() == 0
    assert checkout.called == [f"{UV} from "]


def test_uv_is_had_by_its_own_lock_first(checkout: Checkout) -> None:
    checkout.uv.rename(checkout.path / "uv")
    checkout.program(".venv/bin/python", python("own", then="mv uv .venv/bin/uv"))
    assert checkout.install() == 0
    had = f"own -m pip {PIP} --only-binary :all: --require-hashes -r requirements-install.lock"
    assert checkout.called == [had, f"{UV} from "]


def test_uv_asks_the_index_that_pip_is_told_of(checkout: Checkout) -> None:
    of_pip = "[global]\nindex-url = http://of.pip/simple\n"
    assert checkout.install(of_pip) == 0
    assert checkout.install(of_pip, PIP_INDEX_URL="http://of.the.environment/simple") == 0
    assert checkout.install(of_pip, UV_DEFAULT_INDEX="http://of.uv/simple") == 0
    indexes = ["http://of.pip/simple", "http://of.the.environment/simple", "http://of.uv/simple"]
    assert checkout.called == [f"{UV} from {index}" for index in indexes]


@pytest.mark.parametrize("status", [0, 3])
def test_where_uv_does_not_succeed_pip_installs_the_same_with_hashes(checkout: Checkout, status: int) -> None:
    checkout.program(".venv/bin/uv", uv(status=2))
    checkout.program("other/python", python("other", status=status))
    assert checkout.install() == status
    assert checkout.called == [f"{UV} from ", BY_PIP]


@pytest.mark.parametrize("status", [0, 3])
def test_where_uv_is_not_to_be_had_pip_installs_the_same_with_hashes(checkout: Checkout, status: int) -> None:
    checkout.uv.unlink()
    checkout.program(".venv/bin/python", python("own", status=1))
    checkout.program("other/python", python("other", status=status))
    assert checkout.install() == status
    assert checkout.called[1:] == [BY_PIP]


@pytest.mark.parametrize(
    "told",
    ["[global]\nno-index = true", "[install]\nno-index = true", "[install]\nindex-url = http://of.pip/simple", None],
)
def test_uv_is_left_out_where_pip_is_told_of_an_index_that_uv_is_not(checkout: Checkout, told: str | None) -> None:
    assert (checkout.install(PIP_NO_INDEX="1") if told is None else checkout.install(told)) == 0
    assert checkout.called == [BY_PIP]
