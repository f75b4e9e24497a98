"""A real SLURM for the tests, on one machine: `cd tests/cluster; python -m slurm up` (or `down`).

Everything of it (configuration, keys, state, logs, sockets) lies below one folder, and it has ports of its
own, so that another SLURM or munge of the machine neither sees it nor is touched. Only what knows its
`SLURM_CONF` talks to it.
"""
