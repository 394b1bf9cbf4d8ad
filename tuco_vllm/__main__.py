"""The `tuco` script, and ``python -m tuco_vllm``: signals are taken before anything else is imported."""

import sys

from tuco_vllm.engine.parent_watch import end_with_owner
from tuco_vllm.interruption import ended_by_signals

end_with_owner()  # the processes of a server import this module first of all


def main() -> int:
    """Run one command, see ``tuco_vllm.cli``."""
    with ended_by_signals():
        from tuco_vllm.cli import main

        return main()


if __name__ == "__main__":
    sys.exit(main())
