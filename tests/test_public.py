import subprocess
import sys

import pytest

import patchscaler


@pytest.mark.parametrize("module", ["patchscaler", "patchscaler.cli"])
def test_import_is_light(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'diffusers', 'accelerate'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", patchscaler.__all__)
def test_every_public_name_resolves(name):
    thing = getattr(patchscaler, name)
    assert name == "__version__" or thing.__name__ == name


def test_other_names_are_absent():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = patchscaler.nonsense
