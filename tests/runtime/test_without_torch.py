import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROGRAM = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "diffusers", "transformers"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Block())
import numpy as np
from accuquant.runtime.sample import sample_images
from accuquant.runtime.save_images import save_images

images = sample_images(sys.argv[1], engine=sys.argv[2], num_images=3, steps=5, seed=4)
save_images(images, sys.argv[3])
np.save(sys.argv[3] + "/images.npy", images)
assert not {"torch", "diffusers", "sympy"} & set(sys.modules), "what no engine needs costs memory"
"""


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_an_engine_and_the_loop_run_where_torch_is_not_installed(
    engine: str, make_folder: Callable[..., Any], tmp_path: Path
) -> None:
    from accuquant.runtime.sample import sample_images

    unet = {"_class_name": "UNet2DModel", "num_class_embeds": 3}
    folder, out = make_folder(labels=engine == "onnxruntime", unet=unet), tmp_path / "images"
    command = [sys.executable, "-c", PROGRAM, str(folder), engine, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "grid.png").is_file()
    here = sample_images(folder, engine=engine, num_images=3, steps=5, seed=4)
    np.testing.assert_array_equal(np.load(out / "images.npy"), here)


def test_importing_the_drop_in_is_what_needs_torch() -> None:
    program = PROGRAM.partition("import numpy")[0] + "import accuquant.runtime.engine_unet"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "is not installed here" in done.stderr
