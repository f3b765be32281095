"""crosstime: when did this model learn that, and which feature carries it?

The public names are listed in `__init__.pyi`. Each is imported on first use, so `import crosstime` is instant.
"""

import os
from importlib.metadata import version

import lazy_loader

# Without it, a training step on a CPU under Linux spends as long on getting memory page by page as on using it. torch
# reads this at its first large tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = version("crosstime")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
