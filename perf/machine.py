"""What the operating system tells: CPU time, memory, threads and waiting of processes, and of the whole machine."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORES = os.cpu_count() or 1
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """Of some processes together. `waited` is the time in which their threads could have run and had no core."""

    cpu: float
    waited: float
    switches: int
    """Times a thread went to sleep: for I/O, a timer or a lock."""
    resident_mb: float
    by_thread: dict[str, float]
    """CPU of each, by its number."""

    @property
    def busiest(self) -> float:
        """CPU of the thread that used the most."""
        return max(self.by_thread.values(), default=0.0)

    def since(self, other: "Usage") -> "Usage":
        """CPU and waiting between the two; memory and threads as they are now."""
        return Usage(
            self.cpu - other.cpu,
            self.waited - other.waited,
            self.switches - other.switches,
            self.resident_mb,
            {thread: cpu - other.by_thread.get(thread, 0.0) for thread, cpu in self.by_thread.items()},
        )


def usage_of(pids: list[int]) -> Usage:
    """Of these processes, or of this one."""
    total = Usage(0.0, 0.0, 0, 0.0, {})
    for pid in pids or [os.getpid()]:
        total.cpu += cpu_ns(pid) / 1e9
        total.resident_mb += resident_mb(pid)
        for thread in Path(f"/proc/{pid}/task").iterdir():
            run, waited, switches = thread_times(thread)
            total.waited += waited
            total.switches += switches
            total.by_thread[thread.name] = run
    return total


def thread_times(thread: Path) -> tuple[float, float, int]:
    """Seconds on a core, seconds waiting for one, and how often it went to sleep."""
    try:
        run, waited, _ = (thread / "schedstat").read_text().split()
        status = (thread / "status").read_text()
    except OSError:
        return 0.0, 0.0, 0  # it has ended
    switches = int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return int(run) / 1e9, int(waited) / 1e9, switches


def cpu_ns(pid: int) -> int:
    """CPU time that all threads of a process have used, user and system: /proc/PID/stat's, but in nanoseconds."""
    return time.clock_gettime_ns((~pid << 3) | 2)  # the kernel's number for "CPU clock of that process"


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def clock_of_machine() -> float:
    """Seconds of CPU used by anyone since the start, as a share of all cores: the machine was busy d(this)/dt."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS / CORES


def describe() -> dict[str, str]:
    """For a report."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1e6
    return {
        "cores": str(CORES),
        "processor": names[0] if names else platform.machine(),
        "memory": f"{memory:.0f} GB",
        "system": f"{platform.system()} {platform.release()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}",
        "load": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }
