"""Follows the directory of a cluster, in nothing but Python's library: docs/api.md, Watches.

watch_directory.py [--process NAME] AGENT...    where AGENT is unix:/run/bigbrother/api.sock or http://127.0.0.1:7610
A token, where one is needed, is taken from $BIGBROTHER_TOKEN. Prints a line of JSON for each change.
"""
import argparse, http.client, json, os, random, socket, sys, time

SILENCE = 45  # an agent says something every 15 seconds


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=SILENCE)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def connection(agent):
    scheme, _, rest = agent.partition(":")
    return UnixConnection(rest) if scheme == "unix" else http.client.HTTPConnection(rest.strip("/"), timeout=SILENCE)


def events(answer):
    """(id, name, data) of each event; the last one, when the connection breaks in the midst of it, is not told."""
    event = {"event": "", "id": None, "data": None}
    for line in answer:
        field, _, value = line.decode().rstrip("\r\n").partition(":")
        if not field and not value:
            if event["data"] is not None:
                yield event["id"], event["event"], json.loads(event["data"])
            event = {"event": "", "id": None, "data": None}
        elif field in event:
            event[field] = value.removeprefix(" ")


def watch(agents, path, headers):
    """Every change once, whatever becomes of the agents; `reset` where some were missed, then a new `snapshot`."""
    seen, asked, in_vain = None, 0, 0
    while True:
        try:
            agent = connection(agents[asked % len(agents)])
            agent.request("GET", path, headers=headers | ({"Last-Event-ID": seen} if seen else {}))
            answer = agent.getresponse()
            if 400 <= answer.status < 500:
                sys.exit(json.load(answer)["detail"])
            if answer.status == 200:
                for place, name, data in events(answer):
                    seen, in_vain = place or seen, 0
                    yield name, data
        except (OSError, http.client.HTTPException) as lost:
            print(f"{agents[asked % len(agents)]}: {lost or type(lost).__name__}", file=sys.stderr)
        asked, in_vain = asked + 1, in_vain + 1
        if in_vain % len(agents) == 0:  # nobody answers: wait longer each time, and not all watchers alike
            time.sleep(min(10, 0.1 * 2 ** (in_vain // len(agents))) * random.uniform(0.5, 1))


arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("--process")
arguments.add_argument("agents", nargs="+", metavar="AGENT")
given = arguments.parse_args()
token = os.environ.get("BIGBROTHER_TOKEN")
path = "/v1/directory/watch" + (f"?process={given.process}" if given.process else "")
for name, data in watch(given.agents, path, {"Authorization": f"Bearer {token}"} if token else {}):
    print(json.dumps({"event": name, "data": data}), flush=True)
