"""torchvision, even if its compiled library does not match the installed PyTorch.

pip's build of torchvision for Linux needs a CUDA build of PyTorch. With a CPU build even
`import torchvision` fails, because operators for detection are missing. No recipe uses them. After
their declaration the Python part can be imported: models, transforms, data sets.

Import torchvision from here, and before transformers, which also imports it.
"""

import sys

from torch import library

# torchvision registers fake implementations of these two at import.
MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

try:
    import torchvision
except RuntimeError as error:
    if "operator torchvision::" not in str(error):
        raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    operators = library.Library("torchvision", "FRAGMENT")
    for schema in MISSING:
        operators.define(schema)
    import torchvision

from torchvision import datasets, models  # noqa: E402
from torchvision.transforms import v2 as transforms  # noqa: E402

__all__ = ["datasets", "models", "torchvision", "transforms"]
