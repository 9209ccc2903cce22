"""`from lgrpo_lite.algorithm import Algorithm`: the name that users' files write; its home is
`lgrpo_lite.recipe.algorithm`.
"""

from lgrpo_lite.recipe.algorithm import *  # noqa: F403
