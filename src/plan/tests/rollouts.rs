//! The pace of a rollout.

use super::*;

#[test]
fn a_rollout_keeps_its_budget_and_ends() {
    for budget in [1, 2, 5] {
        let text = |build: &str| {
            zone(&format!("count = 7\nbuild = \"{build}\"\nupdate = {{ max_unavailable = {budget} }}"))
        };
        let mut state = cluster(&text("1"), &["a", "b"]);
        state.plan_out();
        state.run_all(None);
        state.declare(&text("2"));
        let wanted = spec_hash(&state.spec.processes[&"zone".parse().unwrap()]);
        let mut steps = 0;
        while state.placements.values().any(|p| p.hash != wanted) {
            state.plan_out();
            assert!((1..=budget).contains(&state.unready()), "{} of {budget} are down", state.unready());
            state.run_all(None);
            steps += 1;
        }
        assert_eq!(steps, 7usize.div_ceil(budget));
    }
}

#[test]
fn a_bad_rollout_stops_by_itself_and_a_better_one_replaces_it() {
    let text =
        |build: &str| zone(&format!("count = 7\nbuild = \"{build}\"\nupdate = {{ max_unavailable = 2 }}"));
    let mut state = cluster(&text("1"), &["a"]);
    state.plan_out();
    state.run_all(None);
    state.declare(&text("bad"));
    let bad = spec_hash(&state.spec.processes[&"zone".parse().unwrap()]);
    for _ in 0..10 {
        state.plan_out();
        state.run_all(Some(bad));
        assert_eq!(state.unready(), 2);
    }
    assert_eq!(state.placements.values().filter(|p| p.hash == bad).count(), 2);
    state.declare(&text("3"));
    state.plan_out();
    assert_eq!(
        state.placements.values().filter(|p| p.hash == bad).count(),
        0,
        "what is down is free to change"
    );
    assert_eq!(state.unready(), 2);
}

#[test]
fn a_rolling_restart_replaces_each_run_of_its_process_and_no_other() {
    let text = format!("{}[process.login]\ncommand = [\"/l\"]\n", zone("count = 3"));
    let mut state = cluster(&text, &["a"]);
    state.plan_out();
    state.run_all(None);
    let before = state.directory.clone();
    state.roll_out("zone");
    let wanted = state.hash_of(&"zone".parse().unwrap()).unwrap();
    for step in 1..=3 {
        state.plan_out();
        assert_eq!(state.placements.values().filter(|p| p.hash == wanted).count(), step, "one at a time");
        state.run_all(None);
    }
    assert_eq!(state.plan_out().commands, []);
    for (id, entry) in &state.directory {
        assert_eq!(entry.run == before[id].run, id.process.as_str() == "login", "{id}");
    }
}

#[test]
fn what_an_operator_paused_costs_a_rollout_nothing() {
    let text = |build: &str| zone(&format!("count = 3\nbuild = \"{build}\""));
    let mut state = cluster(&text("1"), &["a"]);
    state.plan_out();
    state.run_all(None);
    state.accept(Command::Pause { target: Target::Instance(id("zone.0")) });
    state.directory.remove(&id("zone.0"));
    state.declare(&text("2"));
    let wanted = spec_hash(&state.spec.processes[&"zone".parse().unwrap()]);
    state.plan_out();
    let updated: Vec<String> =
        state.placements.iter().filter(|(_, p)| p.hash == wanted).map(|(id, _)| id.to_string()).collect();
    assert_eq!(updated, ["zone.0", "zone.1"]);
}
