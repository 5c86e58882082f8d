"""Importing this makes a process one in which neither Ray nor DeepSpeed is installed."""

import sys
from importlib.machinery import PathFinder
from typing import Any

NOT_INSTALLED = ("ray", "deepspeed")


class Without(PathFinder):
    """Finds what is installed, less some packages."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        return None if fullname.partition(".")[0] in NOT_INSTALLED else super().find_spec(fullname, path, target)


assert not {name for name in NOT_INSTALLED if name in sys.modules}
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
