"""Shapes are checked while testing: every annotated tensor of the maths is a typed one."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are several times faster so

from jaxtyping import install_import_hook

install_import_hook(
    ["lgrpo_lite.batch", "lgrpo_lite.ops", "lgrpo_lite.objective", "lgrpo_lite.policy"], "beartype.beartype"
)

from hypothesis import Phase, settings  # noqa: E402

# machines are shared: no timed test; shrinking a
settings.register_profile(
    "lgrpo", deadline=None, derandomize=True, max_examples=60, phases=(Phase.explicit, Phase.generate)
)
# failure through typed tensors takes minutes, and the same example comes again
settings.load_profile("lgrpo")


def pytest_collection_finish(session):
    """What was imported and collected stays: a collector that looks at it again takes half a second, each time."""
    gc.collect()
    gc.freeze()
