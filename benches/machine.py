"""Processes, memory and CPU time as /proc tells them, the compiled programs, and the folders of a run.

A worker (worker.c) reads CLOCK_MONOTONIC as the first act of main() and appends it to a file of its own. Every
latency is the difference between such a time and the time taken just before kill() or before starting the
supervisor, so the polling of this program does not enter into it. This program is a child subreaper, and ends
only its own processes: descendants, and those whose executable it compiled or copied.
"""
import ctypes, json, os, shutil, signal, statistics, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))


def say(*words):
    print(time.strftime('%H:%M:%S'), *words, file=sys.stderr, flush=True)


def become_subreaper():
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)     # PR_SET_CHILD_SUBREAPER


def kill(pid, sig=signal.SIGKILL):
    try:
        os.kill(pid, sig)
        return True
    except ProcessLookupError:
        return False


def reap():
    """Collects orphans that came to us as subreaper (Popen copes with that)."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


def nap(seconds):
    """Sleeps, and leaves no zombies meanwhile."""
    end = time.monotonic() + seconds
    while True:
        reap()
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, .1))


def wait_until(seconds, predicate, pause=.02):
    """True as soon as the predicate is; False after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        reap()
        if predicate():
            return True
        if time.monotonic() > end:
            return False
        time.sleep(pause)


def pids():
    return [int(name) for name in os.listdir('/proc') if name.isdigit()]


def status_fields(pid):
    """State, parent and the rest of /proc/PID/stat after the name; None when it is gone."""
    try:
        with open('/proc/%d/stat' % pid, errors='replace') as f:
            text = f.read()
        return text[text.rindex(')') + 2:].split()
    except (OSError, ValueError):
        return None


def descendants(root):
    children, alive = {}, set()
    for pid in pids():
        fields = status_fields(pid)
        if fields and fields[0] not in 'ZX':
            children.setdefault(int(fields[1]), []).append(pid)
            alive.add(pid)
    found, todo = [], [root] if root in alive else []
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def file_id(path):
    try:
        st = os.stat(path)
        return (st.st_dev, st.st_ino)
    except OSError:
        return None


def executable(pid):
    return file_id('/proc/%d/exe' % pid)


def pss_kib(pid):
    with open('/proc/%d/smaps_rollup' % pid) as f:
        return next(int(line.split()[1]) for line in f if line.startswith('Pss:'))


def cpu_ns(pid):
    """CPU time of a process, of its threads that have ended (clock_getcpuclockid), and of reaped children (10 ms grain)."""
    fields = status_fields(pid)
    children = (int(fields[13]) + int(fields[14])) * 1000000000 // os.sysconf('SC_CLK_TCK')
    return time.clock_gettime_ns(~pid << 3 | 2) + children


def processor_seconds(pids):
    """Of these processes, of their threads that have ended, and of their reaped children (10 ms grain)."""
    fields = filter(None, map(status_fields, pids))
    return sum(sum(map(int, of[11:15])) for of in fields) / os.sysconf('SC_CLK_TCK')


def quantile(values, q):
    values = sorted(values)
    at = (len(values) - 1) * q
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (at - low)


def summary(values):
    if not values:
        return None
    figures = {'min': min(values), 'median': statistics.median(values), 'p95': quantile(values, .95),
               'p99': quantile(values, .99), 'max': max(values)}
    return {'n': len(values), **{name: round(value, 3) for name, value in figures.items()}}


def machine():
    model = ''
    with open('/proc/cpuinfo') as f:
        model = next((line.split(':')[1].strip() for line in f if line.startswith('model name')), '')
    with open('/proc/mounts') as f:
        hierarchies = sorted({line.split()[2] for line in f if line.split()[2].startswith('cgroup')})
    return {'cpus': os.cpu_count(), 'cpu': model, 'kernel': os.uname().release, 'cgroups': hierarchies,
            'load': [round(x, 2) for x in os.getloadavg()]}


def quietly(*command):
    """True when it succeeds."""
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def own_disk(folder):
    """Mounts a fresh ext4 there, in a file beside it, whose name is the answer; None where that cannot be.

    ext4 without a journal, as virtual machines like it, looks for every new folder at each inode that was freed in the
    last minutes: on such a disk a start of hundreds measures what somebody has removed before."""
    image = folder + '.ext4'
    with open(image, 'wb') as f:
        f.truncate(1 << 30)
    # Nothing is left to be done later, that is, beside a measurement.
    if quietly('mkfs.ext4', '-q', '-F', '-i', '4096', '-E', 'lazy_itable_init=0,lazy_journal_init=0', image) and \
            quietly('mount', '-o', 'loop', image, folder):
        return image
    os.remove(image)
    say('no file system of its own for', folder)
    return None


class Bench:
    """The temporary folders and the programs of one execution of the measurements.

    Sockets, ledger and workers' files lie on tmpfs, as /run does; what a host keeps on disk lies on disk.
    """

    def __init__(self, binary):
        on_tmpfs = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
        self.top = tempfile.mkdtemp(prefix='bbb-', dir=on_tmpfs)
        self.disk = tempfile.mkdtemp(prefix='bbb-')
        for folder in (self.top, self.disk):
            os.chmod(folder, 0o755)
        self.worker = self.compile('worker')
        self.floor = self.compile('floor')
        self.sketch = self.compile('sketch')
        self.image = own_disk(self.disk)
        os.chmod(self.disk, 0o755)
        # A copy: a build meanwhile must not change what is measured.
        self.binary = shutil.copy2(binary, os.path.join(self.disk, 'bigbrother'))
        self.worker_id, self.binary_id = file_id(self.worker), file_id(self.binary)
        self.runs = 0

    def compile(self, name):
        out = os.path.join(self.top, name)
        source = os.path.join(HERE, name + '.c')
        for extra in (['-static'], []):
            if subprocess.run(['gcc', '-O2', '-o', out, source, *extra], stderr=subprocess.DEVNULL).returncode == 0:
                return out
        sys.exit('gcc cannot compile ' + source)

    def new_run(self):
        self.runs += 1
        folder = os.path.join(self.top, 'r%d' % self.runs)
        for sub in ('log', 'beat', 'lock'):
            os.makedirs(os.path.join(folder, sub))
        return folder

    def workers(self):
        """{index: [pids]} of the live workers."""
        reap()
        found = {}
        for pid in pids():
            fields = status_fields(pid)
            if fields and fields[0] not in 'ZX' and executable(pid) == self.worker_id:
                try:
                    with open('/proc/%d/comm' % pid) as f:
                        name = f.read().strip()
                except OSError:
                    continue
                if name[2:].isdigit():      # else it has only just been executed
                    found.setdefault(int(name[2:]), []).append(pid)
        return found

    def own(self):
        """Pids of bigbrother's own processes, {'agent': [..], 'keeper': [..]}."""
        found, roles = {}, {}
        for pid in descendants(os.getpid()):
            if executable(pid) == self.binary_id:
                try:
                    with open('/proc/%d/cmdline' % pid) as f:
                        words = f.read().split('\0')
                except OSError:
                    continue
                if len(words) > 1:
                    roles[pid] = words[1]
        for pid, role in roles.items():
            # Until its exec a child of the keeper looks like the keeper.
            fields = status_fields(pid)
            if fields and not (role == 'keeper' and roles.get(int(fields[1])) == 'keeper'):
                found.setdefault(role, []).append(pid)
        return found

    def end_all(self):
        """Ends whatever is left of this program's processes, supervisors first."""
        for _ in range(500):
            reap()
            left = [pid for pid in descendants(os.getpid()) if pid != os.getpid()]
            left += [pid for pid in pids() if executable(pid) == self.worker_id]
            if not left:
                return
            for pid in sorted(left, key=lambda pid: executable(pid) == self.worker_id):
                kill(pid)
            time.sleep(.02)
        say('still there:', left)

    def remove(self):
        if self.image:
            if not wait_until(5, lambda: quietly('umount', self.disk)) and not quietly('umount', '-l', self.disk):
                return say('still mounted:', self.disk)
            os.remove(self.image)
        for folder in (self.top, self.disk):
            shutil.rmtree(folder, ignore_errors=True)


def write_json(path, value):
    with open(path, 'a') as f:
        f.write(json.dumps(value) + '\n')
