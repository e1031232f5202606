import contextlib
import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

import patchscaler
from patchscaler import __version__
from patchscaler.cli.common import here_to_stay, run_bar


def test_help_names_the_commands(run):
    result = run("--help")
    assert result.exit_code == 0
    for command in ("upscale", "ui", "serve", "info", "evaluate", "train", "calibrate"):
        assert command in result.stdout


def test_version(run):
    assert run("--version").stdout == f"patchscaler {__version__}\n"


def test_nothing_heavy_is_imported_for_help():
    code = (
        "import sys, patchscaler.cli as cli\n"
        "try: cli.app(['upscale', '--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded', sorted({'torch', 'diffusers', 'pyvips', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    source = str(Path(patchscaler.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize(
    ("command", "package", "module"),
    [("ui", "gradio", "patchscaler.ui.page"), ("serve", "fastapi", "patchscaler.service.app")],
)
def test_an_extra_that_is_not_installed_is_named(run, monkeypatch, command, package, module):
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    result = run(command)
    assert result.exit_code == 2
    assert result.stderr == f"patchscaler: {package} is not installed: pip install 'patchscaler[{command}]'\n"


def test_wrong_option_is_refused(run):
    result = run("upscale", "--nonsense")
    assert result.exit_code == 2
    assert "nonsense" in result.stderr


def test_info_shows_versions_and_devices_even_without_a_bundled_model(run):
    result = run("info")
    assert __version__ in result.stdout
    assert "device cpu" in result.stdout
    bundled = (Path(patchscaler.__file__).parent / "weights" / "config.json").exists()
    assert result.exit_code == (0 if bundled else 2)
    if not bundled:
        assert len(result.stderr.splitlines()) == 1


def test_info_as_json(run):
    if not (Path(patchscaler.__file__).parent / "weights" / "config.json").exists():
        pytest.skip("this source tree has no bundled weights")
    record = json.loads(run("info", "--json").stdout)
    assert record["versions"]["patchscaler"] == __version__
    assert record["devices"][-1]["device"] == "cpu"
    assert record["model"]


def test_progress_is_silent_where_nobody_looks():
    with run_bar(["photo.png"], shown=True) as bar:
        assert bar is None


@pytest.mark.parametrize("error", [None, KeyError])
def test_what_is_loaded_is_not_looked_through_for_garbage_but_the_rest_is(error):
    gc.unfreeze()
    try:
        with contextlib.suppress(KeyError), here_to_stay():
            assert not gc.isenabled()
            if error:
                raise error
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
