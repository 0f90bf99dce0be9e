"""python -m distilwhisper_lib.batch"""

import sys

from distilwhisper_lib.batch.command import main

if __name__ == "__main__":
    sys.exit(main())
