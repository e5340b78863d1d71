"""The supervisors that are compared: the floor, a sketch of two processes, and Big Brother with its default settings."""
import http.client, json, os, signal, socket, subprocess, time

from machine import kill, reap, wait_until

# A look at hundreds of files takes the processors from what is measured: between two, and before the first, there is this
# much time, in seconds.
MANY = .25


class Driver:
    """One supervisor in a fresh folder."""
    name = '?'

    def __init__(self, bench, n):
        self.bench, self.n, self.dir = bench, n, bench.new_run()
        self.proc = None

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def command(self):
        raise NotImplementedError

    def start(self):
        with open(self.path('out'), 'ab') as out:
            self.proc = subprocess.Popen(self.command(), cwd=self.dir, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                         start_new_session=True, env={'PATH': os.environ['PATH']})

    def stop(self):
        if self.proc:
            kill(self.proc.pid)
        self.bench.end_all()
        if self.proc:
            self.proc.wait(5)
            self.proc = None

    # ---- what the workers' files say
    def lines(self, i):
        try:
            with open(self.path('log', str(i))) as f:
                return [line.split() for line in f if line.endswith('\n')]
        except OSError:
            return []

    def starts(self, i):
        return [(int(line[1]), int(line[2])) for line in self.lines(i) if line[0] == 'start']

    def last(self, i):
        """Time and pid of the newest main() of instance i."""
        return self.starts(i)[-1]

    def doubles(self):
        return sum(line[0] == 'double' for i in range(self.n) for line in self.lines(i))

    def size(self, i):
        try:
            return os.stat(self.path('log', str(i))).st_size
        except OSError:
            return 0

    def wait_grown(self, sizes, timeout, pause=.02):
        """Waits until every file in {i: size} is longer; returns those that are not."""
        left = dict(sizes)

        def grown():
            nonlocal left
            left = {i: size for i, size in left.items() if self.size(i) <= size}
            return not left
        time.sleep(pause)
        wait_until(timeout, grown, pause)
        return sorted(left)

    def bring_up(self, timeout=60):
        """Starts everything; returns the ms until the last main()."""
        began = time.monotonic_ns()
        self.start()
        missing = self.wait_grown({i: 0 for i in range(self.n)}, timeout, MANY)
        if missing:
            raise RuntimeError('%d of %d did not start: %s' % (len(missing), self.n, self.tail()))
        return (max(self.last(i)[0] for i in range(self.n)) - began) / 1e6

    def beat_age(self, i):
        with open(self.path('beat', str(i))) as f:
            return (time.monotonic_ns() - int(f.read())) / 1e9

    def tail(self):
        with open(self.path('out'), errors='replace') as f:
            return f.read()[-1500:]


class Floor(Driver):
    """A C loop of vfork, execv and wait(): no state, no logs, no control."""
    name = 'floor'

    def command(self):
        return [self.bench.floor, str(self.n), self.bench.worker, self.path('log')]


class Sketch(Driver):
    """The design's keeper and agent in C, without state, logs or control (sketch.c)."""
    name = 'sketch'

    def command(self):
        os.makedirs(self.cgroup(), exist_ok=True)
        return [self.bench.sketch, str(self.n), self.bench.worker, self.path('log'), self.cgroup()]

    def cgroup(self):
        return os.path.join(own_cgroups()[0], 'bigbrother-sketch-%d' % os.getpid())

    def stop(self):
        super().stop()
        for below, _, _ in os.walk(self.cgroup(), topdown=False):
            wait_until(2, lambda: removed(below))


class BigBrother(Driver):
    """Agent and keeper. `parts`: {mode: count}, modes none, native, notify, query; ordinals go on over them."""
    name = 'bigbrother'
    OPTIONS = {'none': [], 'native': ['-n'], 'notify': ['-w'], 'query': ['-q', '{port.game}']}

    def __init__(self, bench, n, parts=None, locks=False, timeout='5s', extra=''):
        super().__init__(bench, n)
        self.parts = parts or {'notify': n}
        assert sum(self.parts.values()) == n
        self.data = os.path.join(bench.disk, os.path.basename(self.dir))
        self.config = self.path('cluster.toml')
        with open(self.config, 'w') as f:
            f.write(self.text(locks, timeout, extra))

    def text(self, locks, timeout, extra):
        text = '[host]\nname = "bench"\napi = ""\ndata_dir = %s\nruntime_dir = %s\n' % (
            json.dumps(self.data), json.dumps(self.path('run')))
        base = 0
        for mode, count in self.parts.items():
            # Ordinals start from 0 in each process, the workers' indices do not.
            options = (['-x'] if locks else []) + self.OPTIONS[mode] + (['-b', str(base)] if base else [])
            command = [self.bench.worker, *options, self.path('log'), '{ordinal}']
            text += '\n[process.%s]\ncommand = %s\ncount = %d\n' % (mode, json.dumps(command), count)
            text += 'restart = { backoff = false, give_up = false }\n'
            if mode == 'query':
                text += 'ports = { game = "udp" }\nready = { mode = "query" }\n'
                text += 'heartbeat = { mode = "query", protocol = "ddnet", port = "game", timeout = "%s" }\n' % timeout
            elif mode != 'none':
                text += 'heartbeat = { mode = "%s", interval = "1s", timeout = "%s" }\n' % (mode, timeout)
            text += extra
            base += count
        return text

    def command(self):
        return [self.bench.binary, 'agent', '--config', self.config]

    def agent(self):
        return self.proc.pid

    def keeper(self):
        """The keeper's pid; None while there is none. When two begin at once, for an agent that was killed and the one
        after it, the lock lets one of them serve: two that stay are an error."""
        found = []

        def at_most_one():
            found[:] = self.bench.own().get('keeper', [])
            return len(found) < 2
        assert wait_until(3, at_most_one, .02), 'two keepers: %s' % found
        return found[0] if found else None

    def get(self, path):
        """The API's answer; None when nobody answers."""
        connection = http.client.HTTPConnection('localhost', timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(5)
        try:
            connection.sock.connect(self.path('run', 'api.sock'))
            connection.request('GET', path)
            answer = connection.getresponse()
            body = answer.read()
            return json.loads(body) if answer.status == 200 else None
        except OSError:
            return None
        finally:
            connection.close()

    def instances(self):
        answer = self.get('/v1/instances')
        return answer if isinstance(answer, list) else (answer or {}).get('instances', [])

    def all_ready(self):
        found = self.instances()
        status = self.get('/v1/status') or {}
        return bool(status.get('keeper')) and len(found) == self.n and all(i['state'] == 'ready' for i in found)

    def wait_ready(self, timeout=30):
        if not wait_until(timeout, self.all_ready, .05):
            states = {}
            for i in self.instances():
                states[i['state']] = states.get(i['state'], 0) + 1
            raise RuntimeError('not all ready after %s s: %s; %s' % (timeout, states, self.tail()))

    def stop(self):
        super().stop()
        # Its data folder stays until the end: ext4 takes no inode that was freed in the last seconds, and looks
        # at each of them whenever the next run makes a folder.
        for folder in self.cgroups():
            for below, _, _ in os.walk(folder, topdown=False):
                wait_until(2, lambda: removed(below))

    def cgroups(self):
        """The games cgroup that the keeper made below the one that it runs in: bigbrother-HASH (FNV-1a)."""
        value = 0xcbf29ce484222325
        for byte in self.path('run').encode():
            value = (value ^ byte) * 0x100000001b3 % 2 ** 64
        name = 'bigbrother-%08x' % ((value >> 32 ^ value) % 2 ** 32)
        folders = [os.path.join(folder, name) for folder in own_cgroups()]
        return [folder for folder in folders if os.path.isdir(folder)]


def own_cgroups():
    """The v2 cgroup of this process, below each mount of that hierarchy."""
    with open('/proc/self/cgroup') as f:
        own = next((line[3:].strip() for line in f if line.startswith('0::')), '/')
    with open('/proc/mounts') as f:
        return [line.split()[1] + own for line in f if line.split()[2] == 'cgroup2']


def removed(folder):
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError:
        reap()
        return False
    return True


def stopped(pid):
    """Stops a process for the length of a with block."""
    class Stopped:
        def __enter__(self):
            os.kill(pid, signal.SIGSTOP)

        def __exit__(self, *_):
            kill(pid, signal.SIGCONT)
    return Stopped()
