#!/usr/bin/env python3
"""The directory as a web service beside etcd and nginx, on this machine.

    cargo build --release --bin bigbrother --example crowd
    python3 benches/directory.py [--seconds 4] [--repeat 3] [--only reads,watches]

Three agents (peers, fsync on) and three members of etcd (fsync on) hold 10,000 entries each; nginx serves a file of
the size of one of our entries. wrk asks each of them in turn with 64 connections, and the processor time of who was
asked is read from /proc. Then 1,000 and 5,000 watchers, a connection each, on one agent, and 1,000 on three. Client
and servers share the machine, so ratios within one run are what to look at. Needs Debian's etcd-server, nginx-light and
wrk. Everything that it starts ends with it."""

import argparse
import base64
import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

from cluster import free_ports
from machine import processor_seconds

ENTRIES = 10_000
CONNECTIONS = 64
PEERS = ["alpha", "beta", "gamma"]
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# wrk -s this URL -- BODIES: each request has one of the lines of that file as its body; "-": no body.
WRK = """
local requests = {}
function init(args)
  if args[1] == "-" then requests[1] = wrk.format("GET") return end
  for line in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, {["Content-Type"] = "application/json"}, line)
  end
end
function request() return requests[math.random(#requests)] end
function done(summary, latency)
  local e = summary.errors
  print(string.format('JSON {"requests":%d,"seconds":%f,"errors":%d,"p50_ms":%f,"p99_ms":%f}', summary.requests,
    summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3))
end
"""


def dies_with_us():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def resident_mib(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def fetch(url, body=None):
    with urllib.request.urlopen(url, data=body, timeout=10) as answer:
        return answer.read()


def wait(what, holds, patience=60):
    end = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if holds():
                return
        if time.monotonic() > end:
            sys.exit(f"{what}: not within {patience} s")
        time.sleep(0.05)


class Bench:
    def __init__(self, args, root):
        self.args, self.root, self.children, self.good = args, root, [], True
        with open(f"{root}/wrk.lua", "w") as file:
            file.write(WRK)

    def start(self, name, words, **more):
        log = open(f"{self.root}/{name}.log", "ab")
        options = {"stdin": subprocess.DEVNULL, "stdout": log, **more}
        child = subprocess.Popen(words, stderr=log, preexec_fn=dies_with_us, **options)
        self.children.append(child)
        return child

    def end(self):
        # nginx ends its workers when it is asked to end.
        for child in self.children:
            child.terminate()
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            child.kill()
            child.wait()

    # ---- who is asked

    def agents(self):
        listens, apis = free_ports(3), free_ports(3)
        peers = ", ".join(f'{name} = "127.0.0.1:{port}"' for name, port in zip(PEERS, listens))
        self.apis, self.pids = [f"127.0.0.1:{port}" for port in apis], []
        for name, listen, api in zip(PEERS, listens, self.apis):
            home = f"{self.root}/{name}"
            os.mkdir(home)
            with open(f"{home}/cluster.toml", "w") as file:
                file.write(
                    f'[cluster]\nname = "bench"\npeers = {{ {peers} }}\n[host]\nname = "{name}"\ndata_dir = "{home}/data"\n'
                    f'runtime_dir = "{home}/run"\nlisten = "127.0.0.1:{listen}"\napi = "{api}"\n'
                )
            agent = self.start(name, [self.args.bin, "agent", "--config", f"{home}/cluster.toml"])
            self.pids.append(agent.pid)
        wait("three agents", lambda: all(json.loads(fetch(f"http://{api}/v1/status"))["quorum"] for api in self.apis))
        named = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip(PEERS, listens))
        os.mkdir(f"{self.root}/crowd")
        words = [self.args.crowd, "bench", f"{self.root}/crowd", named]
        self.crowd = self.start("crowd", words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self):
        line = self.crowd.stdout.readline()
        if not line:
            sys.exit("the crowd ended: " + open(f"{self.root}/crowd.log").read())
        return json.loads(line)

    def order(self, words):
        print(words, file=self.crowd.stdin, flush=True)
        return self.answer()

    def etcd(self):
        clients, peers = free_ports(3), free_ports(3)
        cluster = ",".join(f"n{number}=http://127.0.0.1:{port}" for number, port in enumerate(peers))
        self.members, self.member_url = [], f"http://127.0.0.1:{clients[0]}"
        for number, (client, peer) in enumerate(zip(clients, peers)):
            mine, to_me = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
            words = ["etcd", "--name", f"n{number}", "--data-dir", f"{self.root}/etcd{number}"]
            words += ["--listen-client-urls", mine, "--advertise-client-urls", mine]
            words += ["--listen-peer-urls", to_me, "--initial-advertise-peer-urls", to_me, "--initial-cluster", cluster]
            self.members.append(self.start(f"etcd{number}", words).pid)
        put, value = f"{self.member_url}/v3/kv/put", base64.b64encode(b"v" * len(self.entry)).decode()
        key = lambda number: base64.b64encode(b"/servers/%06d" % number).decode()
        wait("etcd", lambda: fetch(put, json.dumps({"key": key(0), "value": value}).encode()))
        for number in range(ENTRIES):
            fetch(put, json.dumps({"key": key(number), "value": value}).encode())
        for mode, more in (("any", ', "serializable": true'), ("newest", "")):
            with open(f"{self.root}/{mode}.bodies", "w") as file:
                file.writelines(f'{{"key": "{key(number)}"{more}}}\n' for number in range(ENTRIES))

    def nginx(self):
        (port,) = free_ports(1)
        os.makedirs(f"{self.root}/www")
        with open(f"{self.root}/www/entry.json", "wb") as file:
            file.write(self.entry)
        with open(f"{self.root}/nginx.conf", "w") as file:
            file.write(
                f"daemon off; worker_processes 2; pid {self.root}/nginx.pid; error_log {self.root}/nginx.log;\n"
                f"events {{ worker_connections 4096; }}\nhttp {{ access_log off; keepalive_requests 100000000;\n"
                f"server {{ listen 127.0.0.1:{port}; root {self.root}/www; }} }}\n"
            )
        os.chmod(self.root, 0o755)
        master = self.start("nginx", ["nginx", "-c", f"{self.root}/nginx.conf"]).pid
        self.file_url = f"http://127.0.0.1:{port}/entry.json"
        wait("nginx", lambda: fetch(self.file_url) == self.entry)
        self.workers = [int(pid) for pid in open(f"/proc/{master}/task/{master}/children").read().split()]

    # ---- what is measured

    def load(self, url, bodies, pids):
        words = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{self.args.seconds}s", "--timeout", "10s", "-s", f"{self.root}/wrk.lua"]
        before = processor_seconds(pids)
        said = subprocess.run([*words, url, "--", bodies], check=True, capture_output=True, text=True).stdout
        spent = processor_seconds(pids) - before
        found = json.loads(next(line[5:] for line in said.splitlines() if line.startswith("JSON ")))
        if found["errors"]:
            sys.exit(f"{url}: {found['errors']} errors")
        return {**found, "per_s": found["requests"] / found["seconds"], "cpu": spent / found["requests"] * 1e4}

    def reads(self):
        one = f"http://{self.apis[1]}/v1/directory/zone.3"
        self.entry = fetch(one)
        self.etcd()
        self.nginx()
        asked = {
            "ours": (one, "-", self.pids[1:2]),
            "etcd": (f"{self.member_url}/v3/kv/range", f"{self.root}/any.bodies", self.members[:1]),
            "nginx": (self.file_url, "-", self.workers),
            "ours, consistent": (f"{one}?consistent", "-", self.pids),
            "etcd, linearizable": (f"{self.member_url}/v3/kv/range", f"{self.root}/newest.bodies", self.members),
        }
        rows = {name: [] for name in asked}
        for _ in range(self.args.repeat):
            for name, (url, bodies, pids) in asked.items():
                rows[name].append(self.load(url, bodies, pids))
        print(f"one entry of {ENTRIES}, {len(self.entry)} bytes, {CONNECTIONS} connections; median of {self.args.repeat}")
        middle = lambda name, figure: statistics.median(row[figure] for row in rows[name])
        for name in asked:
            figures = {figure: middle(name, figure) for figure in ("per_s", "p50_ms", "p99_ms", "cpu")}
            print(
                "    {:20} {per_s:9.0f} a second, p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms, {cpu:.3f} s of CPU for 10,000".format(
                    name, **figures
                )
            )
        ratio = lambda figure, ours, theirs: middle(ours, figure) / middle(theirs, figure)
        self.judge("requests a second, of etcd's JSON gateway", ratio("per_s", "ours", "etcd"), 5, least=True)
        self.judge("CPU, of etcd's JSON gateway", ratio("cpu", "ours", "etcd"), 0.25)
        self.judge("requests a second, of nginx", ratio("per_s", "ours", "nginx"), 0.5, least=True)
        consistent = ratio("per_s", "ours, consistent", "etcd, linearizable")
        self.judge("consistent requests a second, of etcd's linearizable", consistent, 2, least=True)

    def watches(self):
        pid = self.pids[1]
        print(f"agent with {ENTRIES} entries: {resident_mib(pid):.0f} MiB")
        for count, hosts, bounds in ((1_000, 1, (10, 20)), (1_000, 3, (30, 30)), (5_000, 1, None)):
            urls = ",".join(self.apis[1:2] if hosts == 1 else self.apis)
            found = self.order(f"watch {count} {self.args.changes} {urls}")
            memory = resident_mib(pid)
            print(f"{count} watchers on {hosts} agents: {json.dumps(found)}, agent {memory:.0f} MiB")
            if bounds:
                median, worst = bounds
                self.judge("ms from the commit to the last, median", found["last_since_commit_p50_ms"], median)
                if worst:
                    self.judge("ms from the commit to the last, p99", found["last_since_commit_p99_ms"], worst)
            if (count, hosts) == (1_000, 1):
                self.judge("MiB of the agent", memory, 80)
            self.order("drop")

    def judge(self, what, value, bound, least=False):
        holds = value >= bound if least else value <= bound
        self.good &= holds
        print(f"    {what}: {value:.2f}, at {'least' if least else 'most'} {bound}: {'pass' if holds else 'FAIL'}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=f"{ROOT}/target/release/bigbrother")
    parser.add_argument("--crowd", default=f"{ROOT}/target/release/examples/crowd")
    parser.add_argument("--seconds", type=int, default=4, help="length of one load")
    parser.add_argument("--repeat", type=int, default=3, help="loads of each kind")
    parser.add_argument("--changes", type=int, default=100, help="changes that are watched")
    parser.add_argument("--only", default="reads,watches")
    args = parser.parse_args()
    wanted = args.only.split(",")
    tools = ("etcd", "nginx", "wrk") if "reads" in wanted else ()
    missing = [tool for tool in tools if not shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin")]
    if missing:
        sys.exit(f"missing: {', '.join(missing)} (apt-get install etcd-server nginx-light wrk)")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="bb-directory-", dir="/var/tmp") as root:
        bench = Bench(args, root)
        try:
            bench.agents()
            print(bench.order(f"fill {ENTRIES}"))
            for name, measured in (("reads", bench.reads), ("watches", bench.watches)):
                if name in wanted:
                    measured()
        finally:
            bench.end()
    return 0 if bench.good else 1


if __name__ == "__main__":
    sys.exit(main())
