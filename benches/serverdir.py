#!/usr/bin/env python3
"""A server directory as a table against the same under Big Brother, on this machine.

    cargo build --release
    python3 benches/serverdir.py [--processes 10000] [--seconds 60]

The old way: each of 10,000 processes updates its row of a table every 5 s, and whoever looks for one reads the table
and takes rows that are not too old. PostgreSQL as Debian sets it up (fsync on) takes these updates, each a transaction
of its own, from pgbench. Big Brother: five agents (three peers, fsync on) start as many real processes, each of which
beats and tells its number of players every 5 s. Writes a second and the processor time of whoever serves are counted
over the same span; the processes and pgbench themselves are not. Needs Debian's postgresql, gcc, and root."""

import argparse
import contextlib
import glob
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import cluster
from cluster import HOSTS, Cluster
from machine import descendants, processor_seconds

EVERY = 5
HERE = os.path.dirname(os.path.abspath(__file__))


def postgres(args, root):
    tools = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not tools:
        sys.exit("missing: postgresql (apt-get install postgresql)")
    tools, data = tools[-1], f"{root}/data"
    shutil.chown(root, "postgres")
    run = lambda *words, **more: subprocess.run(
        ["runuser", "-u", "postgres", "--", *words], check=True, text=True, cwd=root, capture_output=True, **more
    ).stdout
    run(f"{tools}/initdb", "-D", data, "--auth=trust")
    run(f"{tools}/pg_ctl", "-D", data, "-w", "-l", f"{root}/log", "-o", f"-k {root} -h ''", "start")
    try:
        sql = lambda text: run(f"{tools}/psql", "-h", root, "-d", "postgres", "-qtAc", text).strip()
        sql(
            "create table servers (id int primary key, host text, port int, players int, map text, alive timestamptz);"
            "create index on servers (alive);"
            f"insert into servers select n, '203.0.113.' || n % 250, 20000 + n % 40000, 0, 'harbour', now()"
            f" from generate_series(1, {args.processes}) n; analyze servers; checkpoint;"
        )
        with open(f"{root}/beat.sql", "w") as file:
            file.write(
                f"\\set id random(1, {args.processes})\n\\set players random(0, 64)\n"
                "update servers set players = :players, alive = now() where id = :id;\n"
            )
        rate = args.processes // EVERY
        words = [f"{tools}/pgbench", "-h", root, "-n", "-M", "prepared", "-c", "32", "-R", str(rate)]
        words += ["-T", str(args.seconds + 4), "-f", f"{root}/beat.sql", "postgres"]
        log = open(f"{root}/pgbench.log", "w")
        load = subprocess.Popen(["runuser", "-u", "postgres", "--", *words], stdout=log, stderr=log, cwd=root)
        time.sleep(2)
        head = int(open(f"{data}/postmaster.pid").readline())
        look = lambda: (
            int(sql("select pg_stat_clear_snapshot(); select xact_commit from pg_stat_database where datname = 'postgres'").split()[-1]),
            int(sql("select wal_sync from pg_stat_wal")),
        )
        (commits, syncs), spent = look(), processor_seconds(descendants(head))
        time.sleep(args.seconds)
        now, used = look(), processor_seconds(descendants(head)) - spent
        load.wait()
        return {
            "writes": (now[0] - commits) / args.seconds,
            "syncs": (now[1] - syncs) / args.seconds,
            "cpu": used / args.seconds,
        }
    finally:
        run(f"{tools}/pg_ctl", "-D", data, "-m", "immediate", "stop")


class Crowd(Cluster):
    """Five agents and their processes."""

    def zones(self, count):
        return (
            f'[process.zone]\ncommand = ["{self.root}/worker", "-ns", "-m", "{EVERY * 1000}", "{self.root}/log", "{{ordinal}}"]\n'
            f'count = {self.processes}\nready = {{ mode = "native", timeout = "60s" }}\n'
            f'heartbeat = {{ mode = "native", interval = "{EVERY}s", timeout = "60s" }}\n'
        )

    def servers(self):
        """Agents and keepers."""
        agents = [agent.pid for agent in self.agents.values()]
        keepers = [self.get(host, "/v1/status")["keeper"]["pid"] for host in HOSTS]
        return agents + keepers


def big_brother(args, root):
    Crowd.processes = args.processes
    subprocess.run(["gcc", "-O2", "-o", f"{root}/worker", f"{HERE}/worker.c"], check=True)
    os.mkdir(f"{root}/log")
    os.mkdir(f"{root}/beat")
    crowd = Crowd(os.path.abspath(args.bin), root)
    cluster.PATIENCE = 300
    try:
        for host in HOSTS:
            crowd.start(host)
        crowd.wait("five agents at work", crowd.all_up)
        time.sleep(cluster.FIRST_SPANS)
        api = {**os.environ, "BIGBROTHER_API": f"unix:{root}/delta/run/api.sock"}
        began = time.monotonic()
        subprocess.run([args.bin, "apply", f"{root}/delta/more.toml"], env=api, check=True, stdout=subprocess.DEVNULL)
        crowd.wait("all ready", lambda: crowd.ready() == args.processes)
        print(f"Big Brother: {args.processes} processes on five hosts ready after {time.monotonic() - began:.1f} s", flush=True)
        # What a start leaves to be written is not part of it.
        time.sleep(15)
        index = lambda: crowd.get("delta", "/v1/status")["index"]
        pids = crowd.servers()
        before, spent = index(), processor_seconds(pids)
        time.sleep(args.seconds)
        # Each entry of the log is synced at most once on each peer.
        writes = (index() - before) / args.seconds
        return {"writes": writes, "syncs": writes, "cpu": (processor_seconds(pids) - spent) / args.seconds}
    finally:
        crowd.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/bigbrother")
    parser.add_argument("--processes", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    # A keeper of thousands needs more descriptors than a shell has.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, max(hard, 100_000)))
    found = {}
    for name, measured in (("PostgreSQL", postgres), ("Big Brother", big_brother)):
        with tempfile.TemporaryDirectory(prefix="bb-serverdir-", dir="/var/tmp") as root:
            os.chmod(root, 0o755)
            found[name] = measured(args, root)
    print(f"{args.processes} processes, one update each every {EVERY} s, over {args.seconds} s")
    for name, row in found.items():
        print(f"    {name:12} {row['writes']:8.1f} transactions and {row['syncs']:8.1f} syncs of the log a second, {row['cpu']:.3f} cores")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
