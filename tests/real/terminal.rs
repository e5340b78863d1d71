//! What a terminal gets that a pipe does not: colours, and progress of what takes long.

use std::process::Command;

use crate::agent::{Host, require};

/// What the command says on a terminal of its own.
fn on_terminal(host: &Host, args: &[&str], plain: bool) -> String {
    let words = [&[env!("CARGO_BIN_EXE_bigbrother")], args].concat();
    let mut command = Command::new("/usr/bin/script");
    command.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]);
    command.env("BIGBROTHER_API", format!("unix:{}/api.sock", host.runtime_dir().display()));
    command.env("TERM", "xterm").env_remove("NO_COLOR").env_remove("COLUMNS");
    if plain {
        command.env("NO_COLOR", "1");
    }
    let ran = command.stdin(std::process::Stdio::null()).output().expect("script");
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{args:?}: {said}");
    said
}

const COLOUR: &str = "\x1b[3";

#[test]
fn colours_and_progress_are_for_terminals() {
    require("/usr/bin/script", "bsdutils");
    let host = Host::start(&format!("[process.zone]\n{}count = 2\n", crate::zone(&[])));
    for instance in ["zone.0", "zone.1"] {
        host.ready(instance);
    }
    let seen = on_terminal(&host, &["ps"], false);
    assert!(seen.contains("zone.1") && seen.contains(COLOUR), "{seen:?}");
    for plain in [on_terminal(&host, &["ps"], true), host.ok(&["ps"]).out] {
        assert!(plain.contains("zone.1") && !plain.contains(COLOUR), "{plain:?}");
    }
    let seen = on_terminal(&host, &["restart", "zone"], false);
    assert!(seen.contains("restart") && seen.contains("/2 "), "{seen:?}");
    let piped = host.ok(&["restart", "zone"]);
    assert!(!piped.err.contains("/2 ") && !piped.err.contains('\r'), "{piped:?}");
}
