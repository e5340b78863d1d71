//! What people ask of the cluster: other specs, other counts, pauses, drains, launches, other settings.

use std::sync::Arc;
use std::time::Duration;

use bigbrother::config::{Context, parse};
use bigbrother::spec::{Population, ProcessName, Spec};
use bigbrother::state::{Command, Settings, State, Target};

/// What a spec declares.
#[derive(Clone, Debug)]
pub struct Wish {
    pub keep: u32,
    pub exclusive: u32,
    pub frail: u32,
    pub build: u32,
}

impl Wish {
    pub fn any(rng: &mut fastrand::Rng) -> Wish {
        let (keep, exclusive) = (rng.u32(1..7), rng.u32(1..7));
        Wish { keep, exclusive, frail: rng.u32(0..3), build: rng.u32(0..3) }
    }

    pub fn spec(&self) -> Spec {
        let mut spec = SPEC.with(Spec::clone);
        for (name, count) in [("keep", self.keep), ("xone", self.exclusive), ("frail", self.frail)] {
            let process = spec.processes.get_mut(&name.parse::<ProcessName>().unwrap());
            Arc::make_mut(process.unwrap()).population = Population::Count(count);
        }
        for process in spec.processes.values_mut() {
            Arc::make_mut(process).build = Some(self.build.to_string());
        }
        spec
    }
}

thread_local! {
    static SPEC: Spec = declared();
}

/// `x…` runs once at most, `f…` fails where its program is missing, `…job` ends by itself.
fn declared() -> Spec {
    let rest = "ready = { mode = \"spawned\", after = \"100ms\" }\n\
                heartbeat = { mode = \"none\" }\nstop = { timeout = \"3s\" }\n";
    let always = "restart = { backoff = false, give_up = false }";
    let gives_up = "restart = { backoff = { min = \"100ms\", max = \"1s\" }, \
                    give_up = { failures = 2, within = \"1m\" } }";
    let text = format!(
        "[process.keep]\ncommand = [\"/k\"]\n{always}\n{rest}update = {{ max_unavailable = 2 }}\n\
         [process.xone]\ncommand = [\"/x\"]\non_partition = \"stop\"\n{always}\n{rest}\
         [process.xport]\ncommand = [\"/x\"]\ncount = 2\non_partition = \"stop\"\n{always}\n{rest}\
         placement = {{ max_per_host = 1 }}\n\
         [process.each]\ncommand = [\"/e\"]\nper_host = true\n{always}\n{rest}\
         [process.europe]\ncommand = [\"/e\"]\ncount = 2\n{always}\n{rest}\
         placement = {{ labels = {{ region = \"eu\" }}, needs = {{ slots = 3 }} }}\n\
         [process.frail]\ncommand = [\"/f\"]\n{gives_up}\n{rest}\
         [process.job]\ncommand = [\"/j\"]\non_demand = {{ max = 3 }}\n{rest}\
         [process.xjob]\ncommand = [\"/j\"]\non_demand = {{ max = 2 }}\non_partition = \"stop\"\n{rest}"
    );
    parsed(&text)
}

/// So many of one process, and nothing else.
pub fn zones(count: u32) -> Spec {
    parsed(&format!(
        "[process.zone]\ncommand = [\"/z\"]\ncount = {count}\nheartbeat = {{ mode = \"none\" }}\n\
         ready = {{ mode = \"spawned\", after = \"100ms\" }}\n"
    ))
}

fn parsed(text: &str) -> Spec {
    let context = Context { hostname: "a".to_owned(), host_override: None };
    parse(text, "simulation.toml", &context).unwrap_or_else(|faults| panic!("{}", faults.render(false))).spec
}

/// Something that somebody asks for.
pub fn request(state: &State, rng: &mut fastrand::Rng) -> Command {
    let some_process = |rng: &mut fastrand::Rng| -> ProcessName {
        rng.choice(["keep", "xone", "xport", "each", "europe", "frail"]).unwrap().parse().unwrap()
    };
    let some_host = |rng: &mut fastrand::Rng| rng.choice(state.hosts.keys().cloned().collect::<Vec<_>>());
    match rng.u32(0..18) {
        0 | 1 => Command::ApplySpec { spec: Wish::any(rng).spec(), expected_revision: None },
        2 | 3 | 17 => {
            let process = rng.choice(["keep", "xone", "xone", "frail"]).unwrap().parse().unwrap();
            Command::Scale { process, count: rng.bool().then(|| rng.u32(0..8)) }
        }
        4 => match rng.choice(state.placements.keys().cloned().collect::<Vec<_>>()) {
            Some(instance) => Command::Pause { target: Target::Instance(instance) },
            None => Command::Resume { target: Target::All },
        },
        5 => Command::Pause { target: Target::Process(some_process(rng)) },
        6 | 7 => Command::Resume { target: Target::Process(some_process(rng)) },
        8 | 9 | 15 | 16 => match some_host(rng) {
            Some(host) => Command::DrainHost { host, drained: rng.bool() },
            None => Command::Resume { target: Target::All },
        },
        10 | 11 => {
            let args = std::collections::BTreeMap::new();
            let process = rng.choice(["job", "xjob"]).unwrap().parse().unwrap();
            Command::Launch { process, args, key: None }
        }
        12 => {
            let process = some_process(rng);
            let epoch = state.epochs.get(&process).copied().unwrap_or(0) + 1;
            Command::Roll { process, epoch }
        }
        13 => Command::Settings { settings: some_settings(rng) },
        _ => Command::Resume { target: Target::All },
    }
}

/// Safe ones, and some that are not, which the state refuses.
fn some_settings(rng: &mut fastrand::Rng) -> Settings {
    let (fence, timeout) = rng.choice([(5, 8), (3, 5), (7, 10), (4, 8), (5, 6)]).unwrap();
    Settings {
        fence_after: Duration::from_secs(fence),
        host_timeout: Duration::from_secs(timeout),
        max_lost: rng.choice([None, None, Some(2), Some(4)]).unwrap(),
        ..Settings::default()
    }
}
