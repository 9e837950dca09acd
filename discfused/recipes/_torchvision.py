"""torchvision, also where its compiled library does not fit the PyTorch that is installed.

pip has one build of torchvision for Linux, which needs a CUDA build of PyTorch; beside a CPU build
even `import torchvision` fails, over operators for detection that no recipe uses. Declaring them is
enough to import the rest, which is Python: models, transforms, data sets.

Import torchvision from here and before transformers, which imports it, too.
"""

import sys

from torch import library

# Two that torchvision describes to torch.compile while it is imported.
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
