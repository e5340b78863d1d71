//! Real programs under a real agent, from cluster.toml to the game's own answer. Needs root, and the packages
//! that a failing test names.

#[path = "support/agent.rs"]
mod agent;

#[path = "support/promtool.rs"]
mod promtool;

#[path = "real/abort.rs"]
mod abort;
#[path = "real/games.rs"]
mod games;
#[path = "real/launch.rs"]
mod launch;
#[path = "real/lifecycle.rs"]
mod lifecycle;
#[path = "real/notices.rs"]
mod notices;
#[path = "real/notify.rs"]
mod notify;
#[path = "real/policy.rs"]
mod policy;
#[path = "real/probed.rs"]
mod probed;
#[path = "real/process_api.rs"]
mod process_api;
#[path = "real/terminal.rs"]
mod terminal;
#[path = "real/unenforced.rs"]
mod unenforced;
#[path = "real/update.rs"]
mod update;

/// `command = [...]` of a zone server that needs nothing but the binary. It can speak the process API.
fn zone(more: &[&str]) -> String {
    let program = env!("CARGO_BIN_EXE_bigbrother");
    let base = [program, "demo-zone", "--port", "{port.game}", "--name", "{instance}"];
    let words: Vec<String> = base.iter().chain(more).map(|word| format!("{word:?}")).collect();
    format!("command = [{}]\nports = {{ game = \"udp\" }}\n", words.join(", "))
}

/// `command = [...]` of a Python program.
fn python(script: &str) -> String {
    agent::require("/usr/bin/python3", "python3");
    // A command is a template.
    let script = script.replace('{', "{{").replace('}', "}}");
    format!("command = [\"/usr/bin/python3\", \"-u\", \"-c\", '''{script}''']\n")
}
