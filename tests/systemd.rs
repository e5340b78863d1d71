//! The units in a booted systemd: what restarts, deaths, hangs, reloads and stops do to the games. Each test
//! boots a machine of its own (systemd-nspawn, an overlay of /). Needs root and the package systemd-container.

#[path = "systemd/machine.rs"]
mod machine;
#[path = "systemd/package.rs"]
mod package;

use machine::{Machine, until};

const AGENT: &str = "bigbrother-agent.service";
const KEEPER: &str = "bigbrother-keeper.service";
const GAMES: &str = "bigbrother-games.service";

#[test]
fn restarts_and_kills_of_agent_and_keeper_leave_games_and_limits() {
    let machine = Machine::boot();
    let games = machine.start();
    // They come before the games, which are given none of that.
    assert_eq!([AGENT, KEEPER].map(|unit| machine.priority(machine.main_pid(unit).into())), [-10; 2]);
    assert_eq!(games.iter().map(|game| machine.priority(game.pid)).collect::<Vec<_>>(), [0; 4]);
    for unit in [AGENT, KEEPER] {
        let before = machine.main_pid(unit);
        machine.run(&["systemctl", "restart", unit]);
        let between = machine.main_pid(unit);
        assert_ne!(between, before, "{unit} was not restarted");
        machine.assert_untouched(&games, &format!("systemctl restart {unit}"));
        machine.run(&["systemctl", "kill", "--kill-who=main", "--signal=KILL", unit]);
        machine.restarted(unit, between);
        machine.assert_untouched(&games, &format!("SIGKILL of {unit}"));
    }
    // Both at once.
    let before = [machine.main_pid(AGENT), machine.main_pid(KEEPER)];
    machine.run(&["systemctl", "kill", "--kill-who=main", "--signal=KILL", AGENT, KEEPER]);
    machine.restarted(AGENT, before[0]);
    machine.restarted(KEEPER, before[1]);
    machine.assert_untouched(&games, "SIGKILL of both");
}

/// The reason for a unit that only holds the games: what its cgroup is like, systemd cannot restart.
#[test]
fn a_unit_with_limited_children_in_its_own_cgroup_cannot_be_restarted() {
    let machine = Machine::boot();
    let script = "mkdir /sys/fs/cgroup/system.slice/naive.service/child; sleep 1000000 & \
                  echo $! >/sys/fs/cgroup/system.slice/naive.service/child/cgroup.procs; exec sleep 1000000";
    let properties = ["Type=exec", "Delegate=yes", "KillMode=process"].map(|p| format!("--property={p}"));
    let run = ["systemd-run", "--unit=naive"].into_iter().chain(properties.iter().map(String::as_str));
    machine.run(&run.chain(["bash", "-c", script]).collect::<Vec<_>>());
    let own = machine.payload().join("system.slice/naive.service");
    let child = own.join("child/cgroup.procs");
    until("a child in the unit's cgroup", || match std::fs::read_to_string(&child) {
        Ok(pids) if !pids.is_empty() => Ok(()),
        seen => Err(format!("{seen:?}")),
    });
    // A cgroup has either processes or children with limits: between two main processes it can get the latter.
    let main = until("the main process alone", || {
        let procs = std::fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
        if procs.lines().count() == 1 { Ok(procs) } else { Err(procs) }
    });
    std::fs::write(&child, main.trim()).expect("the main process moves away");
    for folder in [machine.payload(), machine.payload().join("system.slice"), own] {
        machine.enable_hugetlb(&folder);
    }
    let restart = machine.try_run(&["systemctl", "restart", "naive"]);
    let said = machine.run(&["journalctl", "--no-pager", "--unit=naive"]);
    assert!(!restart.status.success() && said.contains("status=219/CGROUP"), "{said}");
}

/// A line of the journal: identifier, priority, text, process.
type Line = [String; 4];

fn journal(machine: &Machine, identifier: &str) -> Vec<Line> {
    let text = machine.run(&["journalctl", "--output=json", "--identifier", identifier]);
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let field = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    lines.map(|l| ["SYSLOG_IDENTIFIER", "PRIORITY", "MESSAGE", "_PID"].map(|key| field(&l, key))).collect()
}

#[test]
fn an_instance_that_logs_to_journald_is_found_there_by_its_name_whoever_dies() {
    let machine = Machine::boot();
    let games = machine.start();
    let game = games.iter().find(|game| game.instance == "probed.0").expect("probed.0");
    let pid = game.pid.to_string();
    let heard = |priority: &str, text: &str| {
        let line = ["probed.0", priority, text, pid.as_str()].map(str::to_owned);
        until(&format!("{line:?} in the journal"), || {
            let lines = journal(&machine, "probed.0");
            if lines.contains(&line) { Ok(()) } else { Err(format!("{lines:?}")) }
        });
    };
    heard("6", "begun as probed.0");
    heard("3", "an error");
    assert_eq!(journal(&machine, "zone.0"), [] as [Line; 0], "zone.0 logs to files");
    let goes_on = |after: &str| {
        let ticks = || journal(&machine, "probed.0").iter().filter(|l| l[2] == "tick").count();
        let before = ticks();
        until(&format!("lines after {after}"), || {
            let now = ticks();
            if now > before + 1 { Ok(()) } else { Err(format!("{now} ticks, before {before}")) }
        });
    };
    let before = [machine.main_pid(AGENT), machine.main_pid(KEEPER)];
    machine.run(&["systemctl", "kill", "--kill-who=main", "--signal=KILL", AGENT, KEEPER]);
    machine.restarted(AGENT, before[0]);
    machine.restarted(KEEPER, before[1]);
    goes_on("SIGKILL of agent and keeper");
    machine.run(&["systemctl", "restart", "systemd-journald"]);
    goes_on("a restart of journald");
    machine.assert_untouched(&games, "all of that");
}

#[test]
fn a_hung_agent_is_restarted_by_the_watchdog() {
    let machine = Machine::boot();
    let games = machine.start();
    let hung = machine.main_pid(AGENT);
    machine.run(&["kill", "-STOP", &hung.to_string()]);
    machine.restarted(AGENT, hung);
    let said = machine.run(&["journalctl", "--no-pager", "--unit", AGENT]);
    assert!(said.contains("Watchdog timeout"), "{said}");
    machine.assert_untouched(&games, "a hang of the agent");
}

/// Stops one thread of a process, and no other, for as long as that lives.
const HOLD_SUPERVISION: &str = r#"
import ctypes, os, sys
folder = "/proc/%s/task" % sys.argv[1]
thread = next(int(t) for t in os.listdir(folder) if open("%s/%s/comm" % (folder, t)).read() == "supervision\n")
ptrace = lambda request: ctypes.CDLL(None).ptrace(request, thread, None, None)
PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000
assert ptrace(PTRACE_SEIZE) == 0 and ptrace(PTRACE_INTERRUPT) == 0
while os.WIFSTOPPED(os.waitpid(thread, WALL)[1]): pass
"#;

#[test]
fn an_agent_whose_supervision_alone_stands_still_is_restarted_by_the_watchdog() {
    let machine = Machine::boot();
    let games = machine.start();
    let hung = machine.main_pid(AGENT);
    let hold = ["systemd-run", "--quiet", "--collect", "python3", "-c", HOLD_SUPERVISION, &hung.to_string()];
    machine.run(&hold);
    machine.restarted(AGENT, hung);
    let said = machine.run(&["journalctl", "--no-pager", "--unit", AGENT]);
    assert!(said.contains("Watchdog timeout"), "{said}");
    machine.assert_untouched(&games, "a hang of the supervision");
}

#[test]
fn a_healthy_agent_and_keeper_feed_their_watchdogs() {
    let machine = Machine::boot();
    // Shorter than any pause that the test waits for anyway.
    for unit in [AGENT, KEEPER] {
        let folder = format!("/run/systemd/system/{unit}.d");
        let drop_in = format!("mkdir -p {folder}; printf '[Service]\\nWatchdogSec=3\\n' >{folder}/fast.conf");
        machine.run(&["sh", "-c", &drop_in]);
    }
    machine.run(&["systemctl", "daemon-reload"]);
    let games = machine.start();
    let before = [machine.main_pid(AGENT), machine.main_pid(KEEPER)];
    let fed = |unit: &str| machine.property(unit, "WatchdogTimestampMonotonic").parse::<u64>().unwrap_or(0);
    let first = [fed(AGENT), fed(KEEPER)];
    until("ten seconds of fed watchdogs", || {
        let now = [fed(AGENT), fed(KEEPER)];
        let passed = [now[0].saturating_sub(first[0]), now[1].saturating_sub(first[1])];
        if passed.iter().all(|us| *us >= 10_000_000) { Ok(()) } else { Err(format!("{passed:?} us")) }
    });
    assert_eq!([machine.main_pid(AGENT), machine.main_pid(KEEPER)], before);
    machine.assert_untouched(&games, "ten seconds");
}

#[test]
fn reload_reads_the_file_again_and_upgrades_the_keeper_in_place() {
    let machine = Machine::boot();
    let games = machine.start();
    let [agent, keeper] = [machine.main_pid(AGENT), machine.main_pid(KEEPER)];

    machine.run(&["sed", "-i", "s/^count = 3$/count = 2/", "/etc/bigbrother/cluster.toml"]);
    machine.run(&["systemctl", "reload", AGENT]);
    until("one game less", || {
        let list = machine.run(&["bigbrother", "ps", "--json"]);
        if list.contains("zone.1") && !list.contains("zone.2") { Ok(()) } else { Err(list) }
    });
    machine.run(&["sed", "-i", "s/^count = 2$/count = 3/", "/etc/bigbrother/cluster.toml"]);
    machine.run(&["systemctl", "reload", AGENT]);
    let now = machine.ready_games();
    let kept =
        |list: &[machine::Game]| list.iter().filter(|g| g.instance != "zone.2").cloned().collect::<Vec<_>>();
    assert_eq!(kept(&now), kept(&games));
    assert_eq!(machine.main_pid(AGENT), agent);

    // Another file at the same path, as a package makes it: the process has to become that one.
    machine.run(&["cp", "/usr/bin/bigbrother", "/usr/bin/bigbrother.new"]);
    machine.run(&["mv", "/usr/bin/bigbrother.new", "/usr/bin/bigbrother"]);
    let program = || machine.run(&["readlink", &format!("/proc/{keeper}/exe")]).trim().to_owned();
    assert_eq!(program(), "/usr/bin/bigbrother (deleted)");
    machine.run(&["systemctl", "reload", KEEPER]);
    until("the new program in the keeper's process", || match program() {
        new if new == "/usr/bin/bigbrother" => Ok(()),
        old => Err(old),
    });
    assert_eq!(machine.main_pid(KEEPER), keeper);
    assert_eq!(machine.ready_games(), now);
    // It still is the parent that hears of deaths.
    let victim = &now[0];
    machine.run(&["kill", "-KILL", &victim.pid.to_string()]);
    until("the victim's next run", || {
        let all = machine.ready_games();
        if all[0].run > victim.run { Ok(()) } else { Err(format!("{all:?}")) }
    });
    assert_eq!(machine.property(KEEPER, "ActiveState"), "active");
}

#[test]
fn stopping_the_games_unit_ends_the_games_and_starting_the_agent_begins_anew() {
    let machine = Machine::boot();
    let games = machine.start();
    machine.run(&["systemctl", "stop", AGENT, KEEPER]);
    for game in &games {
        machine.run(&["test", "-d", &format!("/proc/{}", game.pid)]);
    }
    machine.run(&["systemctl", "start", AGENT]);
    machine.assert_untouched(&games, "stop and start of agent and keeper");

    machine.run(&["systemctl", "stop", GAMES]);
    for unit in [AGENT, KEEPER, GAMES] {
        assert_eq!(machine.property(unit, "ActiveState"), "inactive", "{unit}");
    }
    for game in &games {
        let gone = machine.try_run(&["test", "-d", &format!("/proc/{}", game.pid)]);
        assert_eq!(gone.status.code(), Some(1), "{} lives", game.instance);
    }
    machine.run(&["systemctl", "start", AGENT]);
    let anew = machine.ready_games();
    assert!(anew.iter().zip(&games).all(|(new, old)| new.run > old.run), "{anew:?}, before {games:?}");
}

#[test]
fn killing_the_holder_of_the_games_begins_everything_anew() {
    let machine = Machine::boot();
    let games = machine.start();
    let before = [GAMES, KEEPER, AGENT].map(|unit| (unit, machine.main_pid(unit)));
    machine.run(&["kill", "-KILL", &before[0].1.to_string()]);
    for (unit, old) in before {
        machine.restarted(unit, old);
    }
    let anew = machine.ready_games();
    assert!(anew.iter().zip(&games).all(|(new, old)| new.run > old.run), "{anew:?}, before {games:?}");
}

#[test]
fn the_units_are_valid_and_their_account_and_folders_are_made() {
    let machine = Machine::boot();
    let units = [AGENT, KEEPER, GAMES].map(|unit| format!("/usr/lib/systemd/system/{unit}"));
    let verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"];
    let units: Vec<&str> = units.iter().map(String::as_str).collect();
    let verified = machine.try_run(&[&verify[..], &units].concat());
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains("bigbrother"), "{said}");

    machine.run(&["systemd-sysusers", "bigbrother.conf"]);
    machine.run(&["getent", "passwd", "games"]);
    machine.run(&["rm", "-rf", "/run/bigbrother", "/var/lib/bigbrother"]);
    machine.run(&["systemd-tmpfiles", "--create", "bigbrother.conf"]);
    for folder in ["/run/bigbrother", "/var/lib/bigbrother"] {
        assert_eq!(machine.run(&["stat", "--format=%a %U:%G", folder]).trim(), "711 root:root", "{folder}");
    }
}
