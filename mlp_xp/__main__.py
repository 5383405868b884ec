"""``python -m mlp_xp`` is ``mlp-xp``."""

import sys

from mlp_xp._cli import main

sys.exit(main())
