#!/usr/bin/env python3
"""What Big Brother costs, next to a floor measured in the same run.

    cargo build --release
    python3 benches/supervisors.py                    # everything but the long stall, some 10 minutes
    python3 benches/supervisors.py latency storm      # some
    python3 benches/supervisors.py long-stall         # the agent stopped for 10 minutes

    latency     one killed, all started, all killed: as ratios to the floor
    cost        memory, processes, CPU time: idle, native beats, notify beats
    hang        SIGSTOP and silence: from the deadline to the kill
    stall       the agent stopped for 30 s and continued
    long-stall  the same for 10 minutes
    storm       a random victim every 10 ms for 60 s
    adopt       200 times SIGKILL of agent, keeper or both

Needs root (cgroups), Linux, gcc and python3 (standard library only). Prints each figure as a line of JSON to
stdout (and --out), and a table to stderr. Exit code 1 when a figure is out of its bound.
"""
import argparse, json, os, signal, sys, traceback

import figures
from machine import Bench, become_subreaper, machine, say, write_json

BINARY = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'target', 'release', 'bigbrother')


def table(rows):
    def number(value):
        return '-' if value is None else '%g' % value if isinstance(value, int) else '%.2f' % value
    lines = [('figure', 'value', 'bound', '', 'ours / floor, ms')]
    for row in rows:
        if 'figure' not in row:
            continue
        bound, verdict = '', ''
        if 'bound' in row:
            bound = ('>= ' if row['at_least'] else '<= ') + '%g' % row['bound']
            verdict = 'PASS' if row['pass'] else 'FAIL'
        both = '%s / %s' % (number(row['ours_ms']), number(row['floor_ms'])) if 'floor_ms' in row else ''
        lines.append((row['figure'], '%s %s' % (number(row['value']), row['unit']), bound, verdict, both))
    widths = [max(len(line[at]) for line in lines) for at in range(5)]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='*', metavar='WHAT', help='of the list above; default: all but long-stall')
    parser.add_argument('--binary', default=BINARY)
    parser.add_argument('--n', type=int, default=300, help='instances')
    parser.add_argument('--turns', type=int, default=5, help='latency: turns of floor and Big Brother')
    parser.add_argument('--kills', type=int, default=30, help='latency: kills of one in each turn')
    parser.add_argument('--crashes', type=int, default=3, help='latency: kills of all in each turn')
    parser.add_argument('--idle', type=float, default=20, help='cost: seconds')
    parser.add_argument('--hangs', type=int, default=150, help='hang: victims of each kind')
    parser.add_argument('--stall', type=float, default=30, help='stall: seconds')
    parser.add_argument('--long-stall', type=float, default=600, help='long-stall: seconds')
    parser.add_argument('--storm', type=float, default=60, help='storm: seconds')
    parser.add_argument('--rounds', type=int, default=200, help='adopt: kills')
    parser.add_argument('--out', default='', help='append the lines of JSON to this file, too')
    parser.add_argument('--table', default='', help='only print the table of such a file')
    args = parser.parse_args()
    unknown = [what for what in args.what if what not in figures.ALL]
    if unknown:
        parser.error('no such measurement: ' + ', '.join(unknown))
    args.what = args.what or [what for what in figures.ALL if what != 'long-stall']
    return args


def measure(args, rows):
    bench = Bench(args.binary)

    def emit(row):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if args.out:
            write_json(args.out, row)
    try:
        emit({'machine': machine(), 'instances': args.n})
        for what in args.what:
            say('==', what)
            try:
                for row in figures.ALL[what](bench, args):
                    emit({'of': what, **row})
            except Exception:       # one that fails must not cost the others their figures
                emit({'of': what, 'figure': what + ': failed', 'value': None, 'unit': '', 'bound': 0,
                      'at_least': False, 'pass': False, 'error': traceback.format_exc()[-3000:]})
                say(traceback.format_exc())
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        bench.end_all()
        bench.remove()


def main():
    args = arguments()
    rows = []
    if args.table:
        with open(args.table) as f:
            rows = [json.loads(line) for line in f]
    else:
        become_subreaper()
        for number in (signal.SIGTERM, signal.SIGHUP):     # so that what was started is ended
            signal.signal(number, lambda *_: sys.exit('ended by a signal'))
        measure(args, rows)
    print('\n' + table(rows), file=sys.stderr)
    sys.exit(0 if all(row.get('pass', True) for row in rows) else 1)


if __name__ == '__main__':
    main()
