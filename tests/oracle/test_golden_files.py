"""The golden files are what tests/golden/make.py makes today: file and script cannot drift apart."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from nn.interop.mixtral import from_hugging_face
from tests.golden.make import MODELS, make
from tests.oracle.compare import error

GOLDEN = Path(__file__).parents[1] / "golden"
LIMIT = {"float32": 1e-5, "float64": 1e-12}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    make(folder)
    return folder


@pytest.mark.parametrize("dtype", MODELS)
def test_fresh_files_equal_the_stored_ones(dtype: str, fresh: Path) -> None:
    names = [sorted(path.name for path in (folder / dtype).iterdir()) for folder in (fresh, GOLDEN)]
    assert names[0] == names[1]
    for file in ("model.safetensors", "expected.safetensors"):
        new, old = load_file(fresh / dtype / file), load_file(GOLDEN / dtype / file)
        assert new.keys() == old.keys()
        assert {name: x.dtype for name, x in new.items()} == {name: x.dtype for name, x in old.items()}
        limit = LIMIT[dtype] if file == "expected.safetensors" else 1e-300      # the same weights, to the bit
        assert not [name for name in old if not error(new[name], old[name]) < limit]
    configs = [json.loads((folder / dtype / "config.json").read_text()) for folder in (fresh, GOLDEN)]
    assert from_hugging_face(configs[0]) == from_hugging_face(configs[1]) == MODELS[dtype]
