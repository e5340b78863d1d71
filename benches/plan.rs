//! How long a plan takes: 500 hosts x 100 instances at once, and again after 1 % of it changed.
//! `cargo bench --bench plan` prints the median and the worst of 21, and fails when that is over its bound.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use bigbrother::config::{Context, parse};
use bigbrother::plan::{Liveness, Plan, Planner};
use bigbrother::spec::HostName;
use bigbrother::state::{Command, Envelope, HostFacts, State};

const HOSTS: u32 = 500;
const PROCESSES: u32 = 100;
const EACH: u32 = 500;
const TRIALS: usize = 21;

fn host(number: u32) -> HostName {
    format!("host-{number:03}").parse().unwrap()
}

fn take(state: &mut State, command: Command) {
    state.apply(&Envelope { stamp_ms: 1, command }).unwrap();
}

fn join(state: &mut State, number: u32) {
    let facts = HostFacts { machine_id: number.to_string(), ..HostFacts::default() };
    take(state, Command::JoinHost { host: host(number), facts });
}

fn cluster() -> State {
    let process = |n| {
        format!(
            "[process.p{n:02}]\ncommand = [\"/bin/p\"]\ncount = {EACH}\n\
             placement = {{ needs = {{ slots = 1 }}, max_per_host = 50 }}\n"
        )
    };
    let text: String = (0..PROCESSES).map(process).collect();
    let context = Context { hostname: "a".to_owned(), host_override: None };
    let spec = parse(&text, "plan.toml", &context).unwrap_or_else(|f| panic!("{}", f.render(false))).spec;
    let mut state = State::default();
    take(&mut state, Command::ApplySpec { spec, expected_revision: None });
    (0..HOSTS).for_each(|number| join(&mut state, number));
    state
}

fn timed(planner: &mut Planner, state: &State) -> (Plan, Duration) {
    let begun = Instant::now();
    let plan = planner.plan(state, &Liveness::default(), 1);
    (plan, begun.elapsed())
}

fn carry_out(state: &mut State, plan: Plan) {
    assert!(plan.unplaced.is_empty(), "{} are nowhere", plan.unplaced.len());
    plan.commands.into_iter().for_each(|command| take(state, command));
}

/// True when the worst is within the bound. Unoptimized, as a run of all tests may have it, it shows nothing.
fn report(what: &str, mut spans: Vec<Duration>, bound_ms: u64) -> bool {
    spans.sort();
    let (median, worst) = (spans[spans.len() / 2], spans[spans.len() - 1]);
    let good = cfg!(debug_assertions) || worst <= Duration::from_millis(bound_ms);
    let verdict = if good { "pass" } else { "FAIL" };
    println!("{what}: median {median:.1?}, worst {worst:.1?}, at most {bound_ms} ms: {verdict}");
    good
}

fn main() {
    let empty = cluster();
    let (mut first, mut full, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    let mut state = empty.clone();
    let mut planner = Planner::default();
    for trial in 0..TRIALS {
        let (plan, took) = timed(&mut Planner::default(), &empty);
        first.push(took);
        if trial == 0 {
            carry_out(&mut state, plan);
        }
        full.push(timed(&mut Planner::default(), &state).1);
        // The cluster has been planned before; five of its hosts are lost, with what they ran.
        timed(&mut planner, &state);
        let down: Vec<u32> = (0..HOSTS / 100).map(|n| (trial as u32 * 7 + n * 91) % HOSTS).collect();
        for number in &down {
            let incarnation = state.hosts[&host(*number)].incarnation;
            take(&mut state, Command::HostDown { host: host(*number), incarnation });
        }
        let (plan, took) = timed(&mut planner, &state);
        assert!(!plan.commands.is_empty());
        lost.push(took);
        carry_out(&mut state, plan);
        down.into_iter().for_each(|number| join(&mut state, number));
    }
    let good = [
        report("50,000 instances on 500 hosts, all to be placed", first, 50),
        report("all placed, by a planner that knows nothing", full, 50),
        report("1 % of the hosts lost, by a planner that has planned before", lost, 5),
    ];
    std::process::exit(i32::from(good.contains(&false)));
}
