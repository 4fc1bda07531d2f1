import os
import pathlib

import pytest

COMMITTED = pathlib.Path(__file__).parents[1] / "references" / "wan_tiny"


@pytest.fixture(params=["committed", "shared"])
def wan_tiny(request) -> pathlib.Path:
    """Small random models that diffusers and transformers saved, with inputs and outputs: ours, and at NOVA_SHARED."""
    if request.param == "committed":
        return COMMITTED
    folder = pathlib.Path(os.environ.get("NOVA_SHARED", "")) / "reference" / "wan_tiny"
    if not folder.is_dir():
        pytest.skip("set NOVA_SHARED to a folder with reference/wan_tiny")
    return folder
