"""`python -m kdmarl_ros.cli` is `kdmarl`."""

import sys

from kdmarl_ros.cli import main

sys.exit(main())
