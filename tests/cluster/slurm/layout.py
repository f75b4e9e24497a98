"""What the tests' SLURM looks like: its nodes and partitions, and the text of its configuration files."""

import socket
from dataclasses import dataclass
from pathlib import Path

# Nodes of four CPUs, whatever the machine has: `n1` and `n2` for most jobs, the others for jobs that are
# preempted, last long, or lose their node.
NODES = ("n1", "n2", "n3", "n4", "n5", "n6")
CPUS = 4
GPUS = ("/dev/null", "/dev/zero")  # granted by --gpus-per-node like real ones; nothing opens them
NETWORK = "198.18.71"  # of the block reserved for tests of networks (RFC 2544)
CONTROLLER_PORT, DATABASE_PORT, FIRST_NODE_PORT = 17817, 17819, 17821
CREDENTIAL_SECONDS = 10  # SLURM's own 120 s would make a requeued job wait two minutes
GRACE_SECONDS = 20


@dataclass(frozen=True)
class Layout:
    """Where the cluster lives.

    Attributes:
        base: The folder of everything.
        networked: Whether each node has a network and a host name of its own (a namespace). Otherwise all
            share the machine's, and differ by their ports.
    """

    base: Path
    networked: bool

    @property
    def configuration(self) -> Path:
        return self.base / "slurm.conf"

    @property
    def controller(self) -> str:
        return f"{NETWORK}.254" if self.networked else "127.0.0.1"

    def address(self, node: str) -> str:
        return f"{NETWORK}.{1 + NODES.index(node)}" if self.networked else "127.0.0.1"

    def files(self) -> dict[str, str]:
        """Returns the configuration files by name."""
        gpus = "".join(f"Name=gpu File={device}\n" for device in GPUS)
        here = socket.gethostname().split(".")[0]
        hosts = [("127.0.0.1", "localhost"), (self.controller, here), *((self.address(n), n) for n in NODES)]
        return {
            "slurm.conf": self._slurm(here),
            "slurmdbd.conf": self._database(),
            "gres.conf": f"AutoDetect=off\n{gpus}",
            # nothing uses cgroups; naming v1 skips a probe that fails where /sys/fs/cgroup is not mounted
            "cgroup.conf": "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n",
            "hosts": "".join(f"{address} {name}\n" for address, name in hosts),
            "resolv.conf": "nameserver 127.0.0.1\n",  # look-ups fail at once where there is no network
        }

    def _slurm(self, here: str) -> str:
        lines = f"""
ClusterName=gdatest
SlurmctldHost={here}({self.controller})
SlurmctldPort={CONTROLLER_PORT}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={self.base}/munge.socket,cred_expire={CREDENTIAL_SECONDS}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={self.base}/controller
SlurmdSpoolDir={self.base}/%n
SlurmctldPidFile={self.base}/slurmctld.daemon
SlurmdPidFile={self.base}/%n.daemon
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
# a node that comes back serves again; one that is silent is given up soon
ReturnToService=2
SlurmdTimeout=20
# CPUs may be more than the machine has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_min_interval=200000,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={self.controller}
AccountingStoragePort={DATABASE_PORT}
AccountingStoragePass={self.base}/munge.socket
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
GresTypes=gpu
""".strip().splitlines()
        for number, node in enumerate(NODES):
            name = node if self.networked else here
            lines.append(
                f"NodeName={node} NodeHostname={name} NodeAddr={self.address(node)} "
                f"Port={FIRST_NODE_PORT + number} CPUs={CPUS} RealMemory=8000 Gres=gpu:{len(GPUS)}"
            )
        first = "State=UP MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF"
        lines += [
            f"PartitionName=debug Nodes=n1,n2 Default=YES {first}",
            f"PartitionName=apart Nodes=n3,n4,n5,n6 {first}",
            f"PartitionName=low Nodes=ALL State=UP MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE "
            f"GraceTime={GRACE_SECONDS}",
        ]
        return "\n".join(lines) + "\n"

    def _database(self) -> str:
        return f"""
DbdHost=localhost
DbdAddr={self.controller}
DbdPort={DATABASE_PORT}
AuthType=auth/munge
AuthInfo=socket={self.base}/munge.socket
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
PidFile={self.base}/slurmdbd.daemon
""".lstrip()
