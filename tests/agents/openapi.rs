//! The agent answers as its OpenAPI document says: schemathesis asks for everything in it, rightly and wrongly.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host::{Cgroups, Host};

/// Fewer were not a round.
const ROUTES: usize = 33;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi")
}

/// A Python that has schemathesis, in the version that tests/openapi/requirements.txt names.
fn python() -> PathBuf {
    let wanted = std::fs::read_to_string(folder().join("requirements.txt")).unwrap();
    let version = wanted.lines().find_map(|line| line.strip_prefix("schemathesis==")).unwrap();
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("schemathesis-{version}"));
    let python = made.join("bin/python");
    if python.exists() {
        return python;
    }
    // Under another name until it is whole.
    let half = made.with_extension(std::process::id().to_string());
    let run = |command: &mut Command, why: &str| {
        let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{why}: {}{said}", String::from_utf8_lossy(&done.stdout));
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&half), "no venv (apt-get install python3-venv)");
    let mut pip = Command::new(half.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]);
    run(pip.arg(folder().join("requirements.txt")), "schemathesis cannot be installed: is PyPI reached?");
    let _ = std::fs::remove_dir_all(&made);
    std::fs::rename(&half, &made).unwrap();
    python
}

/// A loopback port behind which the agent's Unix socket lies: schemathesis knows TCP only, and there one may only read.
fn door(socket: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for caller in listener.incoming() {
            let (Ok(caller), Ok(agent)) = (caller, UnixStream::connect(&socket)) else { continue };
            let (there, back) = (caller.try_clone().unwrap(), agent.try_clone().unwrap());
            std::thread::spawn(move || {
                carry(&mut &there, &mut &agent);
                let _ = agent.shutdown(Shutdown::Both);
            });
            std::thread::spawn(move || {
                carry(&mut &back, &mut &caller);
                let _ = TcpStream::shutdown(&caller, Shutdown::Both);
            });
        }
    });
    port
}

fn carry(from: &mut impl Read, to: &mut impl Write) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..read]).is_err() {
            return;
        }
    }
}

#[test]
fn the_agent_answers_as_its_document_says() {
    let python = python();
    let mut host = Host::new(Cgroups::None);
    let zone = host.zone("{port.game}");
    let process = |name: &str, how: &str| {
        format!("[process.{name}]\ncommand = {zone}\nports = {{ game = \"udp\" }}\n{how}\n")
    };
    // The names that the document's examples have.
    host.write_config(&(process("zone", "count = 4") + &process("dungeon", "on_demand = { max = 3 }")));
    host.start();
    let pid = host.agent_pid();
    let port = door(host.runtime.join("api.sock"));

    let mut command = Command::new(python);
    command.args(["-m", "schemathesis.cli", "--config-file"]).arg(folder().join("schemathesis.toml"));
    command.arg("run").arg(format!("http://127.0.0.1:{port}/v1/openapi.json"));
    command.arg("--no-color").current_dir(&host.root);
    command
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", folder())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    let tested = said.lines().find_map(|line| line.trim().strip_prefix("Tested: ")?.parse::<usize>().ok());
    assert!(tested.is_some_and(|routes| routes >= ROUTES), "{tested:?} routes were tested:\n{said}");
    println!("{}", said.split("SUMMARY").last().unwrap_or_default());
    let status = host.status().unwrap();
    assert!(status.keeper.is_some() && host.agent_pid() == pid, "{status:?}");
}
