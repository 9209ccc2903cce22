"""Training and nothing else: one step, the loop around it, and the session around that.

The package is a function too: `lgrpo_lite.train(recipe)` is `train.session.train`.
"""

import sys
from types import ModuleType


class _Training(ModuleType):
    def __call__(self, *args, **options):
        from lgrpo_lite.train.session import train

        return train(*args, **options)


sys.modules[__name__].__class__ = _Training
