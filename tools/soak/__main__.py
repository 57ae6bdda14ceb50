"""Run the soak test of two hops."""

import sys

from tools.soak.hops import main

sys.exit(main())
