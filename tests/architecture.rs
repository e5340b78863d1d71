//! The rules of the source tree that no compiler checks: the cores are pure, files and functions are small,
//! every module says what it is for.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// What a pure module lies under, below src/.
const PURE: &[&str] = &[
    "spec.rs",
    "spec/",
    "state.rs",
    "state/",
    "plan.rs",
    "plan/",
    "status.rs",
    "status/",
    "host.rs",
    "host/",
    "config.rs",
    "config/",
    "cluster/node/identity.rs",
    "cluster/raft/change.rs",
    "cluster/session/choice.rs",
    "cluster/session/message.rs",
    "cluster/session/rights.rs",
    "cluster/wire/codec.rs",
    "cluster/wire/frame.rs",
    "cluster/wire/hello.rs",
    "keeper/protocol.rs",
    "keeper/table.rs",
    "process_api/rpc.rs",
    "process_api/notify.rs",
    "agent/probe/answer.rs",
    "agent/probe/ddnet.rs",
    "agent/probe/dialogue.rs",
    "agent/probe/quake3.rs",
    "agent/probe/teeworlds.rs",
    "agent/resolve/known.rs",
    "cli/render.rs",
    "cli/render/",
];

/// What no pure module holds: runtimes, files, sockets, clocks, chance, maps without an order.
const IMPURE: &[&str] = &[
    "tokio",
    "async fn",
    "std::fs",
    "std::io::",
    "std::process",
    "std::thread",
    "std::env",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "ToSocketAddrs",
    "Instant::now",
    "SystemTime::now",
    "clock_gettime",
    "fastrand",
    "rand::",
    "getrandom",
    "HashMap",
    "HashSet",
    "RandomState",
    "unsafe",
];

const LONGEST_FILE: usize = 400;
const LONGEST_FUNCTION: usize = 70;

/// Files that are still to be split, with their length; they may shrink and not grow, and whoever splits
/// one takes it off.
const TO_BE_SPLIT: &[(&str, usize)] = &[];
/// Functions that are still to be split.
const FUNCTIONS_TO_BE_SPLIT: &[(&str, &str, usize)] = &[];

struct Source {
    /// Below src/.
    path: String,
    /// Without comments, strings and test modules, line by line as in the file.
    code: Vec<String>,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    fn is_pure(&self) -> bool {
        let under =
            |place: &&str| self.path == **place || place.ends_with('/') && self.path.starts_with(*place);
        PURE.iter().any(under) && !self.is_test()
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                sources.push(Source { path, code: code_of(&text), text });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 50, "the sources were not found: {} files", sources.len());
    sources
}

/// Blanks comments, strings and characters, then drops what stands under `#[cfg(test)]`.
fn code_of(text: &str) -> Vec<String> {
    let blank = blanked(text);
    let mut lines = Vec::new();
    let mut pending = false;
    let mut depth = 0i64;
    for line in blank.lines() {
        let opened = line.matches('{').count() as i64 - line.matches('}').count() as i64;
        if depth > 0 {
            depth += opened;
            lines.push(String::new());
        } else if pending {
            // The item under the attribute: a block, or one line that ends in a semicolon.
            depth = opened.max(0);
            pending = depth == 0 && !line.contains(';') && !line.contains('}');
            lines.push(String::new());
        } else if line.trim_start().starts_with("#[cfg(test)]") {
            pending = true;
            lines.push(String::new());
        } else {
            lines.push(line.to_owned());
        }
    }
    lines
}

fn blanked(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let length = match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['r', '#', '"', ..] | ['r', '"', ..] if !at.checked_sub(1).is_some_and(|b| is_word(chars[b])) => {
                raw(rest)
            }
            ['"', ..] => quoted(rest, '"'),
            ['\'', '\\', ..] => quoted(rest, '\''),
            ['\'', _, '\'', ..] => 3,
            _ => 0,
        };
        if length == 0 {
            out.push(chars[at]);
            at += 1;
        } else {
            let end = (at + length).min(chars.len());
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn quoted(rest: &[char], mark: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != mark {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn raw(rest: &[char]) -> usize {
    let marks = rest[1..].iter().take_while(|c| **c == '#').count();
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', marks)).collect();
    let body = 2 + marks;
    let found = rest[body..].windows(end.len()).position(|window| window == end);
    found.map_or(rest.len(), |at| body + at + end.len())
}

/// (name, first line, lines) of every function.
fn functions(code: &[String]) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for (number, line) in code.iter().enumerate() {
        let Some(at) = line.find("fn ").filter(|at| *at == 0 || !is_word(line.as_bytes()[at - 1] as char))
        else {
            continue;
        };
        let name: String = line[at + 3..].chars().take_while(|c| is_word(*c)).collect();
        if !name.is_empty() {
            found.extend(length(&code[number..]).map(|lines| (name, number + 1, lines)));
        }
    }
    found
}

/// From the first line to the closing brace; `None` for a declaration without a body.
fn length(code: &[String]) -> Option<usize> {
    let (mut braces, mut brackets) = (0i64, 0i64);
    for (number, line) in code.iter().enumerate() {
        for c in line.chars() {
            match c {
                '(' | '[' => brackets += 1,
                ')' | ']' => brackets -= 1,
                '{' => braces += 1,
                '}' => braces -= 1,
                ';' if braces == 0 && brackets == 0 => return None,
                _ => continue,
            }
            if c == '}' && braces == 0 {
                return Some(number + 1);
            }
        }
    }
    None
}

fn assert_none(what: &str, faults: Vec<String>) {
    assert!(faults.is_empty(), "{what}:\n  {}", faults.join("\n  "));
}

#[test]
fn the_reader_of_sources_sees_code_and_nothing_else() {
    let text = "// tokio\nfn a() {\n  let s = \"HashMap {\"; let c = '{'; let r = r#\"fn x() {\"#;\n}\n\
                #[cfg(test)]\nmod tests {\n  use std::fs;\n}\nfn b<'a>(x: &'a [u8; 2]) -> u8\nwhere\n  u8: Copy,\n{\n  x[0]\n}\n";
    let code = code_of(text);
    assert_eq!(functions(&code), [("a".to_owned(), 2, 3), ("b".to_owned(), 9, 6)]);
    let all = code.join("\n");
    for word in ["tokio", "HashMap", "std::fs"] {
        assert!(!all.contains(word), "{word} in {all}");
    }
    assert_eq!(code_of("#[cfg(test)]\nmod tests;\nuse tokio::x;\n")[2], "use tokio::x;");
}

#[test]
fn the_pure_modules_are_pure() {
    let sources = sources();
    for place in PURE {
        let there =
            sources.iter().any(|s| s.path == *place || place.ends_with('/') && s.path.starts_with(place));
        assert!(there, "there is no src/{place}: take it off the list");
    }
    let mut faults = Vec::new();
    for source in sources.iter().filter(|source| source.is_pure()) {
        for (number, line) in source.code.iter().enumerate() {
            for word in IMPURE.iter().filter(|word| line.contains(*word)) {
                faults.push(format!("src/{}:{}: {word}", source.path, number + 1));
            }
        }
    }
    assert_none("what time, chance and the machine are to be given, not taken", faults);
}

/// What the command line takes of the program beside the API: it runs the program, makes certificates, reads cluster.toml,
/// works on the files of a host whose agent does not run, and knows their errors. `dev` is a service manager of its own.
const BESIDE_THE_API: &[(&str, &[&str])] = &[
    ("cli/ca.rs", &["crate::cluster::tls::issue"]),
    ("cli/declare.rs", &["crate::agent::spec_file"]),
    ("cli/exit.rs", &["crate::agent::", "crate::cluster::", "crate::keeper::"]),
    ("cli/peers.rs", &["crate::agent::spec_file", "crate::cluster::node::"]),
    ("cli/pidfd.rs", &["crate::keeper::process"]),
    ("cli/serve.rs", &["crate::agent::", "crate::keeper"]),
];

#[test]
fn the_command_line_knows_the_agent_by_its_api_alone() {
    let ways = ["crate::agent", "crate::cluster", "crate::keeper", "crate::plan", "crate::process_api"];
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| source.path.starts_with("cli") && !source.is_test()) {
        let may =
            BESIDE_THE_API.iter().find(|(path, _)| *path == source.path).map_or(&[][..], |(_, may)| may);
        for (number, line) in source.code.iter().enumerate() {
            let past = ways.iter().any(|way| line.contains(way)) && !may.iter().any(|may| line.contains(may));
            faults.extend(past.then(|| format!("src/{}:{}: {}", source.path, number + 1, line.trim())));
        }
    }
    assert_none("whoever operates asks the API", faults);
}

#[test]
fn files_are_short() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let lines = source.code.iter().rposition(|line| !line.trim().is_empty()).map_or(0, |last| last + 1);
        let known = TO_BE_SPLIT.iter().find(|(path, _)| *path == source.path).map(|(_, lines)| *lines);
        if lines > known.unwrap_or(LONGEST_FILE) {
            faults.push(format!("src/{}: {lines} lines", source.path));
        } else if known.is_some() && lines <= LONGEST_FILE {
            faults.push(format!("src/{} is short now: take it off the list", source.path));
        }
    }
    assert_none(&format!("files of more than {LONGEST_FILE} lines"), faults);
}

#[test]
fn functions_are_short() {
    let mut faults = Vec::new();
    let mut known = FUNCTIONS_TO_BE_SPLIT.to_vec();
    for source in sources().iter().filter(|source| !source.is_test()) {
        for (name, at, lines) in functions(&source.code) {
            if lines <= LONGEST_FUNCTION {
                continue;
            }
            let bound = known.iter().position(|(path, function, most)| {
                *path == source.path && *function == name && lines <= *most
            });
            match bound {
                Some(entry) => drop(known.swap_remove(entry)),
                None => faults.push(format!("src/{}:{at}: {name} has {lines} lines", source.path)),
            }
        }
    }
    faults
        .extend(known.iter().map(|(path, name, _)| format!("src/{path}: {name} is off the list or longer")));
    assert_none(&format!("functions of more than {LONGEST_FUNCTION} lines"), faults);
}

#[test]
fn modules_are_named_by_what_they_are_about() {
    let nothing =
        ["mod.rs", "util.rs", "utils.rs", "common.rs", "types.rs", "manager.rs", "helpers.rs", "misc.rs"];
    let named = |source: &Source| {
        let name = source.path.rsplit('/').next().unwrap_or_default();
        nothing.contains(&name).then(|| format!("src/{}", source.path))
    };
    assert_none("names that say nothing", sources().iter().filter_map(named).collect());
}

#[test]
fn every_module_says_what_it_is_for() {
    let silent = |source: &Source| {
        let first = source.text.lines().next().unwrap_or_default();
        (!first.starts_with("//! ")).then(|| format!("src/{}: {first}", source.path))
    };
    assert_none("no //! header", sources().iter().filter_map(silent).collect());
}
