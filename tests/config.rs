//! cluster.toml: every fault has its place and its words; example and documents say what the parser does.

use std::collections::BTreeMap;

use bigbrother::config::keys::{Effect, KEYS, Key};
use bigbrother::config::{Config, Context, Faults, parse, written};
use bigbrother::spec::Process;
use bigbrother::spec::fingerprint::spec_hash;
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../cluster.toml.example");
const DOCUMENT: &str = include_str!("../docs/config.md");
const FAULTS: &str = include_str!("config/faults.txt");

fn read(text: &str) -> Result<Config, Faults> {
    let context = Context { hostname: "Alpha.example.org".into(), host_override: None };
    parse(text, "cluster.toml", &context)
}

fn read_good(text: &str) -> Config {
    read(text).unwrap_or_else(|faults| panic!("{faults}\nin\n{text}"))
}

fn lines(text: &str) -> Vec<String> {
    match read(text) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.lines(),
    }
}

fn zone(config: &Config) -> &Process {
    config.spec.processes.iter().find(|(name, _)| name.as_str() == "zone").expect("a process zone").1
}

// --- every fault has its place -----------------------------------------------------------------------------

/// tests/config/faults.txt: blocks of a text and, after `=>`, the lines that are reported for it. A text that
/// begins with a key stands in a `[process.zone]` with a command, from its line 3.
#[test]
fn faults_are_reported_at_their_place() {
    let mut blocks = 0;
    for block in
        FAULTS.split("\n\n").map(str::trim).filter(|block| !block.is_empty() && !block.starts_with('#'))
    {
        let (text, expected) = block.split_once("\n=> ").unwrap_or_else(|| panic!("no => in\n{block}"));
        let whole = match text.strip_prefix("whole:\n") {
            Some(whole) => whole.to_owned(),
            None => format!("[process.zone]\ncommand = [\"/a\"]\n{text}"),
        };
        let expected: Vec<&str> = expected.split("\n=> ").collect();
        assert_eq!(lines(&whole), expected, "of\n{whole}");
        blocks += 1;
    }
    assert!(blocks > 100, "only {blocks} blocks were found in faults.txt");
}

#[test]
fn a_report_shows_every_fault_with_a_caret() {
    let text = "[host]\nports = \"9-1\"\n\n[process.zone]\ncomand = [\"/a\"]\ncommand = [\"/a\", \"größe {prt.game}\"]\n";
    let expected = "\
cluster.toml:2:9: `ports` begins with 9 and ends with 1
  |
2 | ports = \"9-1\"
  |         ^^^^^
  |
  = help: did you mean \"1-9\"?

cluster.toml:5:1: [process.zone] has no key `comand`
  |
5 | comand = [\"/a\"]
  | ^^^^^^
  |
  = help: did you mean `command`?

cluster.toml:6:25: unknown placeholder {prt.game}; there are {port.NAME}, {instance}, {process}, {ordinal}, \
{host}, {host.label.NAME}, {address}, {data} and {arg.NAME}
  |
6 | command = [\"/a\", \"größe {prt.game}\"]
  |                         ^^^^^^^^^^

3 faults
";
    let faults = read(text).unwrap_err();
    assert_eq!(faults.render(false), expected);
    assert_eq!(faults.to_string(), expected);
    let coloured = faults.render(true);
    assert!(coloured.contains("\u{1b}["), "no colour in {coloured:?}");
    assert!(coloured.contains("cluster.toml:5:1:"), "{coloured:?}");
}

#[test]
fn a_flood_of_faults_is_counted_and_not_shown() {
    let text: String = (0..1000).map(|n| format!("key{n} = 1\n")).collect();
    let report = read(&text).unwrap_err().render(false);
    assert!(report.ends_with("1000 faults, the first 100 are shown\n"), "{}", &report[report.len() - 80..]);
    assert_eq!(report.matches("cluster.toml:").count(), 100);
}

#[test]
fn a_command_that_no_message_to_the_keeper_holds_is_refused() {
    let body = |env: usize| {
        format!(
            "[process.zone]\ncommand = [\"/a\", \"{}\"]\nenv = {{ A = \"{}\" }}\n",
            "x".repeat(1000),
            "y".repeat(env)
        )
    };
    read_good(&body(100_000));
    assert_eq!(
        lines(&body(114_000)),
        ["3:7: command and environment have 115028 bytes, at most 114688 are possible"]
    );
}

#[test]
fn a_fixed_port_is_refused_only_where_instances_must_meet() {
    let two = |top: &str, one: &str, other: &str| {
        lines(&format!(
            "{top}\n[process.a]\ncommand=['/a']\nports={{x=7777}}\n{one}\n\
             [process.b]\ncommand=['/a']\nports={{x=7777}}\n{other}\n"
        ))
        .len()
    };
    let peers = "cluster.peers = { alpha = '127.0.0.1:1', beta = 'localhost:1' }\nhost.listen = '[::1]:1'";
    assert_eq!(two("", "", ""), 1);
    assert_eq!(two("", "count=0", ""), 0);
    assert_eq!(two("", "count=2", "on_demand={max=2}"), 3);
    assert_eq!(two("", "placement.labels={r='eu'}", "placement.labels={r='us'}"), 0);
    assert_eq!(two("", "placement.labels={r='eu'}", "placement.labels={r='eu'}"), 1);
    assert_eq!(two("", "placement.labels={r='eu'}", "placement.labels={z='us'}"), 1);
    assert_eq!(two(peers, "count=2", "count=2"), 0);
    assert_eq!(two(peers, "per_host=true", ""), 0);
    assert_eq!(two(peers, "per_host=true", "per_host=true"), 1);
}

#[test]
fn what_only_another_host_can_answer_is_left_to_it() {
    read_good(
        "cluster.peers={alpha='[::1]:1'}\nhost.listen='[::1]:1'\n[process.zone]\ncommand=['/a', '{host.label.region}']",
    );
}

// --- names of this host ------------------------------------------------------------------------------------

#[test]
fn the_host_is_named_by_option_file_and_hostname_in_this_order() {
    let name = |text: &str, hostname: &str, option: Option<&str>| {
        let context = Context { hostname: hostname.into(), host_override: option.map(str::to_owned) };
        parse(text, "f", &context).map(|config| config.host.name.to_string()).map_err(|f| f.lines())
    };
    assert_eq!(name("host.name='beta'", "Alpha.lan", Some("gamma")), Ok("gamma".to_owned()));
    assert_eq!(name("host.name='beta'", "Alpha.lan", None), Ok("beta".to_owned()));
    assert_eq!(name("", "Alpha.lan", None), Ok("alpha".to_owned()));
    assert_eq!(
        name("", "10.lan", None),
        Err(vec![
            "1:1: the hostname \"10\" cannot be this host's name: a host name must not be all digits".into()
        ])
    );
    let refused = name("[host]\nname='beta'", "alpha", Some("Beta")).unwrap_err();
    assert!(refused[0].starts_with("2:6: --host \"Beta\" is no host name:"), "{refused:?}");
}

// --- what is left out --------------------------------------------------------------------------------------

#[test]
fn ready_and_heartbeat_lend_each_other_what_is_left_out() {
    let keys = |body: &str| {
        let config =
            read_good(&format!("[process.zone]\ncommand=['/a']\nports={{game='udp', rcon='tcp'}}\n{body}"));
        let mut keys = written::process(zone(&config));
        keys.retain(|key, _| key.starts_with("ready.") || key.starts_with("heartbeat."));
        [
            "ready.mode",
            "ready.protocol",
            "ready.port",
            "heartbeat.mode",
            "heartbeat.protocol",
            "heartbeat.port",
        ]
        .map(|key| keys.get(key).cloned().unwrap_or_default().trim_matches('"').to_owned())
        .join(" ")
    };
    assert_eq!(keys(""), "spawned   none  ");
    assert_eq!(keys("heartbeat={mode='native'}"), "native   native  ");
    assert_eq!(keys("heartbeat={mode='notify'}"), "notify   notify  ");
    assert_eq!(keys("heartbeat={mode='native'}\nready={after='1s'}"), "spawned   native  ");
    assert_eq!(keys("heartbeat={mode='query',protocol='ddnet'}"), "query ddnet game query ddnet game");
    assert_eq!(
        keys("heartbeat={mode='tcp'}\nready={mode='query',protocol='valve'}"),
        "query valve game tcp  rcon"
    );
    assert_eq!(
        keys("ready={mode='query',protocol='minecraft'}\nheartbeat={mode='query'}"),
        "query minecraft rcon query minecraft rcon"
    );
}

#[test]
fn intervals_that_are_left_out_suit_the_protocol() {
    let times = |body: &str| {
        let config = read_good(&format!("[process.zone]\ncommand=['/a']\nports={{game='udp'}}\n{body}"));
        let beat = zone(&config).heartbeat.clone();
        (beat.interval.as_secs(), beat.timeout.as_secs())
    };
    assert_eq!(times("heartbeat={mode='query',protocol='teeworlds'}"), (1, 5));
    assert_eq!(times("heartbeat={mode='query',protocol='quake3'}"), (2, 6));
    assert_eq!(times("heartbeat={mode='native',interval='10s'}"), (10, 30));
}

// --- the table of keys, the parser, the example and the document agree ---------------------------------------

/// Whether a dotted path is an instance of a key's path.
fn is(key: &str, path: &[String]) -> bool {
    let parts: Vec<&str> = key.split('.').collect();
    parts.len() == path.len() && parts.iter().zip(path).all(|(part, name)| *part == "NAME" || part == name)
}

fn leaves(table: &toml::Table, path: &mut Vec<String>, out: &mut Vec<Vec<String>>) {
    for (key, value) in table {
        path.push(key.clone());
        match value {
            toml::Value::Table(inner) => leaves(inner, path, out),
            _ => out.push(path.clone()),
        }
        path.pop();
    }
}

#[test]
fn the_example_is_valid_and_has_every_key() {
    read_good(EXAMPLE);
    let mut found = Vec::new();
    leaves(&EXAMPLE.parse().unwrap(), &mut Vec::new(), &mut found);
    for key in KEYS {
        assert!(found.iter().any(|path| is(key.path, path)), "cluster.toml.example lacks {}", key.path);
    }
}

/// What the manuals show can be copied as it is.
#[test]
fn the_files_that_the_documents_show_are_valid() {
    for (name, text, shown) in [
        ("README.md", include_str!("../README.md"), 2),
        ("docs/security.md", include_str!("../docs/security.md"), 1),
    ] {
        let blocks: Vec<&str> =
            text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().expect("an end")).collect();
        assert_eq!(blocks.len(), shown, "of {name}");
        blocks.into_iter().for_each(|block| drop(read_good(block)));
    }
}

#[test]
fn the_document_has_the_row_of_every_key_and_no_other() {
    let rows: Vec<String> = KEYS.iter().map(Key::to_string).collect();
    let found: Vec<&str> = DOCUMENT.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(found, rows);
}

/// `[cluster]` and `[host]` as [`written::process`] writes a process.
fn settings(config: &Config) -> BTreeMap<String, String> {
    let (cluster, host) = (&config.cluster, &config.host);
    let text = |text: &str| format!("{text:?}");
    let time = |time| text(&humantime::format_duration(time).to_string());
    let mut keys = BTreeMap::from([
        ("cluster.name", text(&cluster.name)),
        ("cluster.host_timeout", time(cluster.host_timeout)),
        ("cluster.fence_after", time(cluster.fence_after)),
        ("cluster.fence_kill", time(cluster.fence_kill)),
        ("cluster.peer_silence", time(cluster.peer_silence)),
        ("cluster.dead_voter_after", time(cluster.dead_voter_after)),
        ("host.name", text(host.name.as_str())),
        ("host.data_dir", format!("{:?}", host.data_dir)),
        ("host.runtime_dir", format!("{:?}", host.runtime_dir)),
        ("host.listen", text(&host.listen)),
        ("host.api", text(host.api.as_deref().unwrap_or(""))),
        ("host.address", text(&host.address)),
        ("host.agent", text(&host.agent)),
        ("host.ports", text(&format!("{}-{}", host.ports.0, host.ports.1))),
        ("host.policy.users", format!("{:?}", host.policy.users)),
        ("host.policy.programs", format!("{:?}", host.policy.programs)),
    ]);
    keys.extend(cluster.max_lost.map(|n| ("cluster.max_lost", n.to_string())));
    keys.extend(cluster.tls.iter().flat_map(|tls| {
        let path = |path: &std::path::Path| format!("{path:?}");
        let files = [("ca", &tls.ca), ("cert", &tls.cert), ("key", &tls.key)];
        let keys = ["cluster.tls.ca", "cluster.tls.cert", "cluster.tls.key"];
        keys.into_iter().zip(files.map(|(_, file)| path(file)))
    }));
    keys.extend(host.api_tls.iter().flat_map(|tls| {
        [("host.api_tls.cert", format!("{:?}", tls.cert)), ("host.api_tls.key", format!("{:?}", tls.key))]
    }));
    let mut keys: BTreeMap<String, String> =
        keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    keys.extend(cluster.peers.iter().map(|(name, address)| (format!("cluster.peers.{name}"), text(address))));
    keys.extend(host.labels.iter().map(|(name, value)| (format!("host.labels.{name}"), text(value))));
    keys.extend(
        host.capacity.iter().map(|(name, value)| (format!("host.capacity.{name}"), value.to_string())),
    );
    for (key, value) in written::process(zone(config)) {
        keys.insert(format!("process.zone.{key}"), value);
    }
    keys
}

/// A key's path with names in it that the other texts of these tests know.
fn path(key: &Key) -> String {
    let path = key.path.replace("process.NAME", "process.zone").replace("peers.NAME", "peers.alpha");
    path.replace(".NAME", ".some")
}

/// What else a key needs, and a first value where it cannot be left out.
fn surroundings(key: &Key) -> (&'static str, Option<&'static str>) {
    match key.path.strip_prefix("process.NAME.").unwrap_or("") {
        "command" => ("", Some("['/other']")),
        "ready.protocol" => ("ready.mode='query'\nports.game='udp'", Some("'teeworlds'")),
        "ready.port" => (
            "ready={mode='query', protocol='ddnet', port=@}\nports={game='udp', other='udp'}",
            Some("'other'"),
        ),
        "ready.command" => ("ready.mode='exec'", Some("['/other']")),
        "heartbeat.protocol" => ("heartbeat.mode='query'\nports.game='udp'", Some("'teeworlds'")),
        "heartbeat.port" => (
            "heartbeat={mode='query', protocol='ddnet', port=@}\nports={game='udp', other='udp'}",
            Some("'other'"),
        ),
        "heartbeat.command" => ("heartbeat.mode='exec'", Some("['/other']")),
        "heartbeat.interval" | "heartbeat.timeout" | "heartbeat.on_hang" | "heartbeat.abort_timeout" => {
            ("heartbeat.mode='native'", None)
        }
        _ if key.path.starts_with("cluster.tls.") || key.path.starts_with("host.api_tls.") => {
            ("", Some("'/other'"))
        }
        _ => ("", None),
    }
}

/// A whole file with the key set to the value; `None`: left out, or its first value.
fn file_with(key: &Key, value: Option<&str>) -> String {
    let (around, first) = surroundings(key);
    let value = value.or(first);
    let path = path(key);
    let inner = path.strip_prefix("process.zone.").filter(|_| !around.contains('@'));
    let line = |path: &str| value.map_or_else(String::new, |value| format!("{path} = {value}\n"));
    let top = if path.starts_with("process.") { String::new() } else { line(&path) };
    // The files of a `tls` only make sense together.
    let shown: &[&str] = &["host.api_tls.cert", "host.api_tls.key"];
    let mutual: &[&str] = &["cluster.tls.ca", "cluster.tls.cert", "cluster.tls.key"];
    let tls = if key.path.starts_with("host.") { shown } else { mutual };
    let others = tls.iter().filter(|file| tls.contains(&key.path) && **file != key.path);
    // Peers elsewhere need all three.
    let others = others.chain(tls.iter().filter(|_| key.path.starts_with("cluster.peers")));
    let top = others.map(|file| format!("{file} = '/x'\n")).collect::<String>() + &top;
    let command = if inner == Some("command") { "" } else { "command = ['/a']\n" };
    let inner = inner.map_or_else(String::new, line);
    let around = around.replace('@', value.unwrap_or_default());
    format!(
        "{top}[process.zone]\n{command}{around}\n{inner}\n[process.login]\ncommand = ['/a']\n\
         [process.dungeon]\ncommand = ['/a']\non_demand = {{ max = 1 }}\n"
    )
}

#[test]
fn documented_defaults_are_the_real_ones() {
    let keys = settings(&read_good("[process.zone]\ncommand = ['/a']\n"));
    for key in KEYS {
        let real = keys.get(&path(key)).map(String::as_str);
        let expected = match key.default {
            "none" => None,
            "required" => Some("[\"/a\"]"),
            "the hostname" => Some("\"alpha\""),
            "the address of `listen`" if key.path == "host.agent" => Some("\"127.0.0.1:7600\""),
            "the address of `listen`" => Some("\"127.0.0.1\""),
            default => Some(default),
        };
        assert_eq!(real, expected, "the default of {}", key.path);
    }
    assert_eq!(read_good("host.listen='10.0.0.9:1'").host.address, "10.0.0.9");
    assert_eq!(read_good("host.listen='[::1]:1'").host.address, "::1");
    let agent = |text: &str| read_good(text).host.agent;
    assert_eq!(agent("host.listen='[::1]:1'"), "[::1]:1");
    assert_eq!(agent("host.listen='0.0.0.0:1'\nhost.address='10.0.0.9'"), "10.0.0.9:1");
    assert_eq!(agent("host.listen='[::]:1'\nhost.address='fd::9'"), "[fd::9]:1");
    assert_eq!(agent("host.listen='127.0.0.1:1'\ncluster.peers={alpha='localhost:2'}"), "localhost:2");
    assert_eq!(agent("host.listen='127.0.0.1:1'\ncluster.peers={beta='localhost:2'}"), "127.0.0.1:1");
}

#[test]
fn every_key_is_read_and_takes_effect_as_documented() {
    for key in KEYS {
        let (before, after) = (file_with(key, None), file_with(key, Some(key.example)));
        let (old, new) = (read_good(&before), read_good(&after));
        let (old_keys, new_keys) = (settings(&old), settings(&new));
        assert_ne!(old_keys.get(&path(key)), new_keys.get(&path(key)), "{} is not read", key.path);
        let restarts = spec_hash(zone(&old)) != spec_hash(zone(&new));
        assert_eq!(restarts, key.effect == Effect::Restart, "the effect of {}", key.path);
    }
}

#[test]
fn every_key_refuses_a_value_of_another_type() {
    for key in KEYS {
        let text = file_with(key, Some("1979-05-27"));
        let at = text.find("1979").unwrap();
        let faults = read(&text).expect_err(key.path);
        assert!(faults.iter().any(|fault| fault.span.start == at), "{}: {faults}", key.path);
    }
}

// --- there and back ----------------------------------------------------------------------------------------

/// Every process of a file, written key by key and read again.
fn rewritten(config: &Config) -> String {
    let mut out = String::from("cluster.peers = { alpha = '[::1]:1' }\nhost.listen = '[::1]:1'\n");
    for (name, process) in &config.spec.processes {
        out.push_str(&format!("[process.{name}]\n"));
        for (key, value) in written::process(process) {
            out.push_str(&format!("{key} = {value}\n"));
        }
    }
    out
}

#[test]
fn what_is_written_is_read_as_the_same_process() {
    let texts = KEYS.iter().map(|key| file_with(key, Some(key.example)));
    let odd = "[process.zone]\ncommand=['/a', '', \"\"\"a\n'\"b\"\"\"]\nenv={'a.b'='{{x', \"q\\\"'\"='y'}\n\
               limits={memory=1000001, cpu=0.1, core=0}\nports={a=7, b='7/tcp'}\nstop.signal='INT'\n\
               restart={backoff=false, give_up=false}\nlogs='null'\numask='7'\ndrain.timeout='1h 3ms'\n";
    for text in texts.chain([EXAMPLE.to_owned(), odd.to_owned()]) {
        let config = read_good(&text);
        assert_eq!(read_good(&rewritten(&config)).spec, config.spec, "of\n{text}");
    }
}

#[test]
fn deep_nesting_is_a_fault_like_any_other() {
    let deep = 100_000;
    for text in [
        format!("{}a = 1", "a.".repeat(deep)),
        format!("[process.zone.env]\n{}a = 1", "a.".repeat(deep)),
        format!("[{}a]", "a.".repeat(deep)),
        format!("a = {}", "[".repeat(deep)),
        format!("a = {}", "{ a = ".repeat(deep)),
    ] {
        assert!(!lines(&text).is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(text in "(?s).{0,200}") {
        if let Err(faults) = read(&text) {
            prop_assert!(faults.iter().count() > 0);
            prop_assert!(faults.render(true).len() > faults.render(false).len());
        }
    }

    #[test]
    fn no_mutation_of_the_example_makes_it_panic(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..40usize, "[\\[\\]{}=\"'.,#\n \\\\a-z0-9é\u{0}-]{0,8}"), 1..6),
    ) {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for (at, length, put) in cuts {
            let start = at.index(text.len());
            let end = (start + length).min(text.len());
            text.splice(start..end, put.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(faults) = read(&text) {
            prop_assert_eq!(faults.lines().len(), faults.iter().count());
            prop_assert!(!faults.render(false).is_empty());
        }
    }
}
