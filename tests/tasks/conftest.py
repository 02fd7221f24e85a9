import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def superglue_dir():
    named = os.environ.get("SUPERGLUE_DIR")
    repository = Path(__file__).resolve().parents[2]
    folder = Path(named) if named else repository.parent / "shared/data/superglue"
    if not folder.is_dir():
        pytest.skip("the official SuperGLUE files are absent; set SUPERGLUE_DIR")
    return folder
