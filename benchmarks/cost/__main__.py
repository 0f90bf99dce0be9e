"""python -m benchmarks.cost"""

import sys

from benchmarks.cost.study import main

if __name__ == "__main__":
    sys.exit(main())
