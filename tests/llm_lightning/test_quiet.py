"""What a user sees of warnings."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("library", ["warnings", "lightning.fabric.utilities.rank_zero"])
def test_a_warning_is_shown_without_source_path_and_code(library):
    code = (
        "from llm_lightning.process.quiet import quiet_libraries; quiet_libraries(); import warnings, "
        f"{library}; warnings.warn('rows repeat'); warnings.warn('in vain', DeprecationWarning)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[0] == "Warning: rows repeat"
    assert "<string>" not in done.stderr and "warnings.warn" not in done.stderr
