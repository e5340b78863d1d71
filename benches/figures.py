"""The measurements. Each yields the figures that it found: {'figure', 'value', 'unit', ..., 'bound', 'pass'}.

Bounds are those of the project; a figure without a bound is context.
"""
import os, random, select, signal, statistics, time

from drivers import MANY, BigBrother, Floor, Sketch, stopped
from machine import cpu_ns, kill, nap, pss_kib, quantile, say, summary, wait_until


def figure(name, value, unit, bound=None, at_least=False, **more):
    row = {'figure': name, 'value': None if value is None else round(value, 3), 'unit': unit, **more}
    if bound is not None:
        holds = value is not None and (value >= bound if at_least else value <= bound)
        row.update(bound=bound, at_least=at_least, **{'pass': holds})
    return row


def ratio(name, mine, floor, bound, **more):
    return figure(name, mine / floor, 'x floor', bound, ours_ms=round(mine, 3),
                  floor_ms=round(floor, 3), **more)


# ---- starting, killing one, killing all

def one_kill(d, i, timeout=30):
    size, (_, pid) = d.size(i), d.last(i)
    began = time.monotonic_ns()
    kill(pid)
    return None if d.wait_grown({i: size}, timeout, .005) else (d.last(i)[0] - began) / 1e6


def kill_all(d, timeout=60):
    """ms until the last of all killed at once is back, and how many are not or are there twice."""
    sizes, pids = {i: d.size(i) for i in range(d.n)}, [d.last(i)[1] for i in range(d.n)]
    began = time.monotonic_ns()
    for pid in pids:
        kill(pid)
    missing = d.wait_grown(sizes, timeout, MANY)
    nap(.5)
    twice = sum(len(found) > 1 for found in d.bench.workers().values())
    took = None if missing else (max(d.last(i)[0] for i in range(d.n)) - began) / 1e6
    return took, len(missing), twice


# Big Brother's own default is instances that send a notify heartbeat once a second, which those of the floor do not.
KINDS = {'floor': Floor, 'sketch': Sketch, 'bigbrother': lambda bench, n: BigBrother(bench, n, {'none': n}),
         'with beats': BigBrother}


def latency(bench, args):
    """Floor, sketch and Big Brother by turns, so that all see the same disturbances: the same program with the same
    arguments. Beside them, without a bound, Big Brother with instances that beat as well."""
    found = {name: {'start': [], 'kill': [], 'all': []} for name in KINDS}
    wrong = 0
    random_of = random.Random(7)
    for turn in range(args.turns):
        # A start just after another one's cgroups were removed is slower: it is not always the same one's.
        for name in random_of.sample(list(KINDS), len(KINDS)):
            d = KINDS[name](bench, args.n)
            mine = found[name]
            try:
                mine['start'].append(d.bring_up())
                if isinstance(d, BigBrother):
                    d.wait_ready()
                nap(2)
                for _ in range(args.kills):
                    nap(random_of.uniform(.02, .12))
                    took = one_kill(d, random_of.randrange(d.n))
                    mine['kill'].append(took) if took is not None else None
                    wrong += took is None
                nap(.5)
                for _ in range(args.crashes):
                    took, missing, twice = kill_all(d)
                    wrong += missing + twice
                    mine['all'].append(took) if took is not None else None
                say(name, turn, 'start %.0f' % mine['start'][-1], 'kill %s' % summary(mine['kill'][-args.kills:]),
                    'all %s' % [round(x) for x in mine['all'][-args.crashes:]])
            finally:
                d.stop()
    median, p95 = statistics.median, lambda values: quantile(values, .95)
    for name, key, of, bound in (('kill to main(), median', 'kill', median, 1.2), ('kill to main(), p95', 'kill', p95, 2),
                                 ('start of all (%d)' % args.n, 'start', median, 1.4),
                                 ('all killed, all back (%d)' % args.n, 'all', median, 1.3)):
        floor, sketch, ours, beats = (of(found[kind][key]) for kind in KINDS)
        yield ratio(name, ours, floor, bound, sketch_ms=round(sketch, 3), ours=summary(found['bigbrother'][key]),
                    floors=summary(found['floor'][key]))
        yield ratio(name + ', with beats', beats, floor, None)
        yield ratio(name + ', of the sketch', sketch, floor, None)
    yield figure('lost or doubled meanwhile', wrong, 'instances', 0)


# ---- memory and CPU time

def cost(bench, args):
    for mode in ('none', 'native', 'notify'):
        d = BigBrother(bench, args.n, {mode: args.n})
        try:
            d.bring_up()
            d.wait_ready()
            nap(5)
            own = bench.own()
            extra = sum(len(found) for found in own.values()) - 2
            agent, keeper = d.agent(), d.keeper()
            before, began = (cpu_ns(agent), cpu_ns(keeper)), time.monotonic()
            nap(args.idle)
            seconds = time.monotonic() - began
            spent = [(after - b) / 1e6 for after, b in zip((cpu_ns(agent), cpu_ns(keeper)), before)]
            share = sum(spent) / 10 / seconds
            parts = {'agent_ms': round(spent[0], 2), 'keeper_ms': round(spent[1], 2), 'seconds': round(seconds, 1)}
            if mode == 'none':
                # One tick of the kernel's own accounting (10 ms) in 20 s is the least that `ps` or `top` can show.
                yield figure('CPU, idle', share, '% of a core', .05, **parts)
                yield figure('further processes', extra, 'processes', 0)
            else:
                yield figure('CPU, %d %s beats/s' % (args.n, mode), share, '% of a core', 1.5, **parts)
            yield figure('PSS agent, %s' % mode, pss_kib(agent) / 1024, 'MiB', 20)
            yield figure('PSS keeper, %s' % mode, pss_kib(keeper) / 1024, 'MiB', 3)
        finally:
            d.stop()


# ---- hangs

def hang(bench, args):
    timeout = 2
    half = args.n // 2
    d = BigBrother(bench, args.n, {'native': half, 'notify': args.n - half}, timeout='%ds' % timeout)
    try:
        d.bring_up()
        d.wait_ready()
        nap(3)
        for how, sig in (('SIGSTOP', signal.SIGSTOP), ('silence', signal.SIGUSR1)):
            late, unseen = hang_watched(d, random.sample(range(args.n), args.hangs), sig, timeout)
            yield figure('hang by %s: after the deadline, median' % how, statistics.median(late), 'ms', 10,
                         ours=summary(late))
            yield figure('hang by %s: after the deadline, p99' % how, quantile(late, .99), 'ms', 50)
            yield figure('hang by %s: before the deadline or never' % how,
                         unseen + sum(ms < -1 for ms in late), 'instances', 0)
            d.wait_ready()
            nap(2)
    finally:
        d.stop()


def hang_watched(d, victims, sig, timeout):
    """Hangs the victims at moments of their own; ms from each deadline to the death, and how many never died.

    The deadline is the last beat, which the worker itself has written down, plus the timeout.
    """
    poll, by_fd, late = select.poll(), {}, []

    def collect_dead(wait_ms):
        for fd, _ in poll.poll(wait_ms):
            now = time.monotonic_ns()
            late.append((now - by_fd.pop(fd)) / 1e6)
            poll.unregister(fd)
            os.close(fd)
    for i in victims:
        until = time.monotonic() + random.uniform(.02, .06)
        while time.monotonic() < until:
            collect_dead(max(0, int((until - time.monotonic()) * 1000)))
        pid = d.last(i)[1]
        fd = os.pidfd_open(pid)
        kill(pid, sig)
        time.sleep(.002)
        with open(d.path('beat', str(i))) as f:
            by_fd[fd] = int(f.read()) + int(timeout * 1e9)
        poll.register(fd, select.POLLIN)
    end = time.monotonic() + timeout + 10
    while by_fd and time.monotonic() < end:
        collect_dead(100)
    for fd in by_fd:
        os.close(fd)
    return late, len(by_fd)


# ---- a stopped agent

def stall(bench, args, seconds=None):
    """Nobody healthy dies when the agent goes on after a stop, and nobody blocks while it is stopped."""
    seconds = seconds or args.stall
    third = args.n // 3
    d = BigBrother(bench, args.n, {'native': third, 'notify': third, 'query': args.n - 2 * third})
    try:
        d.bring_up()
        d.wait_ready()
        nap(3)
        before = {i: d.starts(i) for i in range(d.n)}
        with stopped(d.agent()):
            end, blocked = time.monotonic() + seconds, set()
            while time.monotonic() < end:
                nap(min(2, max(.1, end - time.monotonic())))
                blocked |= {i for i in range(d.n) if d.beat_age(i) > 1.9}
            dead = d.n - len(bench.workers())
        nap(12)
        killed = [i for i in range(d.n) if d.starts(i) != before[i]]
        yield figure('agent stopped %g s: blocked' % seconds, len(blocked), 'instances', 0)
        yield figure('agent stopped %g s: died' % seconds, dead, 'instances', 0)
        yield figure('agent stopped %g s: healthy, killed afterwards' % seconds, len(killed), 'instances', 0)
        d.wait_ready()
        # It must watch again: a hang is still seen.
        victims = random.sample([i for i in range(2 * third)], 10)
        late, unseen = hang_watched(d, victims, signal.SIGSTOP, 5)
        yield figure('agent stopped %g s: hangs unseen afterwards' % seconds, unseen, 'instances', 0,
                     ours=summary(late))
    finally:
        d.stop()


def long_stall(bench, args):
    yield from stall(bench, args, args.long_stall)


# ---- faults

def accounts(d):
    """Lost and doubled instances now."""
    found = d.bench.workers()
    return {'lost': [i for i in range(d.n) if i not in found],
            'double': [i for i, of in found.items() if len(of) > 1], 'seen_double': d.doubles()}


def storm(bench, args):
    """A random victim every 10 ms."""
    d = BigBrother(bench, args.n, locks=True)
    try:
        d.bring_up()
        d.wait_ready()
        began, kills, random_of = time.monotonic(), 0, random.Random(11)
        while time.monotonic() < began + args.storm:
            kills += kill(d.last(random_of.randrange(d.n))[1])
            reap_until = began + (kills + 1) * .01
            time.sleep(max(0, min(.01, reap_until - time.monotonic())))
        wait_until(10, lambda: not any(accounts(d).values()), .2)
        took, missing, twice = kill_all(d)
        after = accounts(d)
        starts = sum(len(d.starts(i)) for i in range(d.n))
        yield figure('storm: kills a second', kills / args.storm, '1/s', 50, at_least=True)
        yield figure('storm of %g s: lost' % args.storm, len(after['lost']) + missing, 'instances', 0, kills=kills,
                     starts=starts, all_back_ms=took and round(took, 1))
        yield figure('storm of %g s: doubled' % args.storm, len(after['double']) + after['seen_double'] + twice,
                     'instances', 0)
        d.wait_ready()
    finally:
        d.stop()


def adopt(bench, args):
    """SIGKILL of agent, keeper or both, again and again, at any moment of their starting, too."""
    d = BigBrother(bench, args.n, locks=True)
    try:
        d.bring_up()
        d.wait_ready()
        before = {i: d.starts(i) for i in range(d.n)}
        random_of, took = random.Random(13), []
        for turn in range(args.rounds):
            what = random_of.choice(('agent', 'keeper', 'both'))
            keeper = d.keeper()
            if what != 'agent' and keeper:
                kill(keeper)
            if what != 'keeper':
                kill(d.agent())
                d.proc.wait()
                began = time.monotonic()
                d.start()
            else:
                began = time.monotonic()
            # Every third victim gets no time to settle.
            if turn % 3:
                wait_until(30, lambda: adopted(d, keeper if what != 'agent' else None), .01)
                took.append((time.monotonic() - began) * 1e3)
            else:
                nap(random_of.uniform(0, .1))
        d.wait_ready()
        changed = [i for i in range(d.n) if d.starts(i) != before[i]]
        yield figure('%d kills of agent or keeper: not adopted' % args.rounds, len(changed), 'instances', 0,
                     adopted_ms=summary(took))
        after = accounts(d)
        yield figure('%d kills of agent or keeper: lost' % args.rounds, len(after['lost']), 'instances', 0)
        yield figure('%d kills of agent or keeper: doubled' % args.rounds,
                     len(after['double']) + after['seen_double'], 'instances', 0)
        took, missing, twice = kill_all(d)
        yield figure('supervised again afterwards: not back or doubled', missing + twice, 'instances', 0,
                     all_back_ms=took and round(took, 1))
    finally:
        d.stop()


def adopted(d, old_keeper):
    return d.keeper() not in (None, old_keeper) and d.all_ready()


ALL = {'latency': latency, 'cost': cost, 'hang': hang, 'stall': stall, 'long-stall': long_stall, 'storm': storm,
       'adopt': adopt}
