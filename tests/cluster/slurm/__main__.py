"""`python -m slurm up | down`, in `tests/cluster`."""

import sys

from slurm import real_slurm
from slurm.packages import Unavailable

if __name__ == "__main__":
    try:
        if sys.argv[1:] == ["up"]:
            layout = real_slurm.up()
            print(f"export SLURM_CONF={layout.configuration}")
        elif sys.argv[1:] == ["down"]:
            real_slurm.down()
        else:
            sys.exit(__doc__)
    except Unavailable as error:
        sys.exit(f"No SLURM here: {error}.")
