"""Run the soak test with two hops."""

import sys

from tools.soak.hops import main

sys.exit(main())
