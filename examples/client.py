"""A game process under Big Brother, in nothing but Python's library (docs/protocol.md)."""
import json, os, select, socket, time

INTERVAL = int(os.environ.get("BIGBROTHER_HEARTBEAT_MS", "1000")) / 1000
agent, unsent, unread = None, b"", b""

def say(method, **params):
    global unsent
    if len(unsent) < 65536:  # an agent that does not read costs a beat, never memory
        unsent += json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode() + b"\n"


def heard(wait):
    """Writes what goes without waiting, then waits until the agent speaks; connects again when it was restarted."""
    global agent, unsent, unread
    try:
        if agent is None:
            agent, unsent, unread = socket.socket(socket.AF_UNIX), b"", b""
            agent.connect(os.environ["BIGBROTHER_SOCKET"])
            say("hello", client="client.py", version="1", state="ready")
            say("heartbeat")
        unsent = unsent[agent.send(unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL):]
        select.select([agent], [], [], wait)
        while data := agent.recv(65536, socket.MSG_DONTWAIT):
            unread += data
        agent = None  # the other end is closed
    except BlockingIOError:
        pass
    except OSError:
        agent = None
        time.sleep(min(wait, 0.1))
    *lines, unread = unread.split(b"\n")
    return [json.loads(line) for line in lines]


while not any(message.get("method") == "shutdown" for message in heard(INTERVAL)):
    say("heartbeat")  # a ping needs no line of its own: heard() returns, and this is the answer
    say("status", players=0, capacity=8, text=f"{time.process_time():.1f} s of CPU")
say("stopping")
heard(0)
