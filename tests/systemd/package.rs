//! The Debian package in a booted machine: installed, upgraded, removed, purged.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine::{Machine, until};
use crate::{AGENT, GAMES, KEEPER};

/// Packages of the program as built for the tests, with this version and the next.
fn packages(folder: &Path) -> [PathBuf; 2] {
    let build = |version: &str| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let built = Command::new("bash")
            .arg(root.join("systemd/package"))
            .args(["--deb-version", version, "--output"])
            .arg(folder)
            .env("PROGRAM", env!("CARGO_BIN_EXE_bigbrother"))
            .output()
            .expect("bash");
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(
            built.status.success(),
            "systemd/package needs cargo-deb (`cargo install --locked cargo-deb`) and Debian's dpkg-dev: {said}"
        );
        let name = String::from_utf8_lossy(&built.stdout).trim().to_owned();
        assert!(name.ends_with(".deb"), "{name}\n{said}");
        PathBuf::from(name)
    };
    // One after the other: both write the manuals.
    let first = build("0.1.0-1");
    [first, build("0.1.0-2")]
}

/// Puts a package into the machine and installs it.
fn install(machine: &Machine, package: &Path) {
    let inside = "/root/bigbrother.deb";
    machine.copy(package, inside);
    machine.run(&["dpkg", "--install", inside]);
}

fn version(machine: &Machine) -> String {
    machine.run(&["dpkg-query", "--show", "--showformat=${Version}", "bigbrother"])
}

/// What of Big Brother there is in the machine's folders that packages and programs write to.
fn found(machine: &Machine) -> String {
    let folders = ["/etc", "/usr", "/run", "/var/lib"];
    let find = ["find"].into_iter().chain(folders);
    machine.run(&find.chain(["-name", "*bigbrother*"]).collect::<Vec<_>>())
}

#[test]
fn the_package_installs_upgrades_without_touching_games_and_leaves_nothing() {
    let folder = tempfile::TempDir::new().expect("a folder for the packages");
    let [first, second] = packages(folder.path());
    let machine = Machine::boot_bare();
    // The first keeps packages in containers from starting what they bring; without the second the index of all
    // manuals, which takes minutes, is left alone.
    machine.run(&["rm", "-f", "/usr/sbin/policy-rc.d", "/var/lib/man-db/auto-update"]);

    install(&machine, &first);
    assert_eq!(version(&machine), "0.1.0-1");
    for unit in [AGENT, KEEPER] {
        assert_eq!(machine.run(&["systemctl", "is-enabled", unit]).trim(), "enabled");
        assert_eq!(machine.property(unit, "ActiveState"), "active");
    }
    let games = machine.ready_games();
    let status = machine.run(&["bigbrother", "status"]);
    assert!(status.contains("alpha") && status.contains("keeper"), "{status}");
    let manual = machine.run(&["man", "--where", "bigbrother-kill-test"]);
    assert!(manual.contains("/usr/share/man/man1/"), "{manual}");
    for file in ["bigbrother.rules.yml", "bigbrother.dashboard.json"] {
        machine.run(&["test", "-s", &format!("/usr/share/bigbrother/prometheus/{file}")]);
    }

    let before = [AGENT, KEEPER].map(|unit| machine.main_pid(unit));
    let holder = machine.main_pid(GAMES);
    install(&machine, &second);
    assert_eq!(version(&machine), "0.1.0-2");
    for (unit, old) in [AGENT, KEEPER].into_iter().zip(before) {
        let new = machine.restarted(unit, old);
        let program = machine.run(&["readlink", &format!("/proc/{new}/exe")]);
        assert_eq!(program.trim(), "/usr/bin/bigbrother", "{unit} is the new program");
    }
    assert_eq!(machine.ready_games(), games, "the upgrade touched a game");
    assert_eq!(machine.main_pid(GAMES), holder);

    machine.run(&["dpkg", "--remove", "bigbrother"]);
    for game in &games {
        until("the games are gone", || {
            let gone = machine.try_run(&["test", "-d", &format!("/proc/{}", game.pid)]);
            if gone.status.code() == Some(1) { Ok(()) } else { Err(format!("{game:?} lives")) }
        });
    }
    let left = machine.run(&["sh", "-c", "cat /proc/[0-9]*/comm"]);
    assert!(!left.contains("bigbrother"), "{left}");
    let kept = found(&machine);
    assert!(kept.contains("/var/lib/bigbrother") && !kept.contains("/run/bigbrother"), "{kept}");

    machine.run(&["dpkg", "--purge", "bigbrother"]);
    // The operator's own file, which no package brought.
    assert_eq!(found(&machine).trim(), "/etc/bigbrother");
    // It fails when there are none.
    let units = machine.try_run(&["systemctl", "list-unit-files", "--no-legend", "bigbrother*"]);
    assert_eq!(String::from_utf8_lossy(&units.stdout).trim(), "");
}
