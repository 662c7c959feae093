"""``python -m oper_lightning`` is the command ``oper``."""

import sys

from oper_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
