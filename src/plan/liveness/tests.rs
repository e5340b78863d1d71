//! Who is confirmed and who is declared down, and when.

use super::*;
use crate::state::{Envelope, HostFacts, Settings};

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn at(ms: u64) -> Moment {
    Moment(0).after(Duration::from_millis(ms))
}

fn take(state: &mut State, command: Command) {
    state.apply(&Envelope { stamp_ms: 1, command }).unwrap();
}

fn cluster(hosts: &[&str]) -> State {
    let mut state = State::default();
    for name in hosts {
        take(&mut state, Command::JoinHost { host: host(name), facts: HostFacts::default() });
    }
    state
}

fn report(state: &State, name: &str, seq: u64) -> Report {
    Report { host: host(name), incarnation: state.hosts[&host(name)].incarnation, seq }
}

/// Ticks on, with reports of these hosts, and gives what was said in the end.
fn wait(roll: &mut Roll, state: &State, from: u64, until: u64, alive: &[&str]) -> Verdict {
    let mut last = Verdict::default();
    for ms in (from..=until).step_by(250) {
        alive.iter().for_each(|name| roll.report(report(state, name, ms), at(ms)));
        last = roll.tick(state, true, at(ms)).unwrap();
    }
    last
}

fn down(state: &State, name: &str) -> Command {
    Command::HostDown { host: host(name), incarnation: state.hosts[&host(name)].incarnation }
}

#[test]
fn a_silent_host_is_declared_down_after_the_timeout_and_confirmed_nothing_until_it_joins_again() {
    let mut state = cluster(&["a", "b", "c"]);
    let mut roll = Roll::new(at(0));
    wait(&mut roll, &state, 0, 1_000, &["a", "b", "c"]);
    assert_eq!(wait(&mut roll, &state, 1_250, 8_750, &["a", "b"]), Verdict::default());
    let verdict = wait(&mut roll, &state, 9_000, 9_000, &["a", "b"]);
    assert_eq!(verdict.commands, [down(&state, "c")]);
    assert_eq!(
        wait(&mut roll, &state, 9_250, 9_250, &[]).commands,
        [down(&state, "c")],
        "until it is committed"
    );
    // It is heard again before that is committed.
    roll.report(report(&state, "c", 99), at(9_300));
    let round = roll.begin_round();
    let confirmed = roll.confirm(round, &state);
    assert!(confirmed.iter().all(|confirm| confirm.report.host != host("c")), "{confirmed:?}");
    let again = wait(&mut roll, &state, 9_500, 9_500, &["a", "b", "c"]);
    assert_eq!(
        again.commands,
        [down(&state, "c")],
        "the proposal may have been lost, and there is no way back"
    );
    let lost = down(&state, "c");
    take(&mut state, lost);
    take(&mut state, Command::JoinHost { host: host("c"), facts: HostFacts::default() });
    roll.report(report(&state, "c", 1), at(9_400));
    let round = roll.begin_round();
    let confirmed = roll.confirm(round, &state);
    let of_c: Vec<&Report> =
        confirmed.iter().map(|c| &c.report).filter(|report| report.host == host("c")).collect();
    assert_eq!(of_c, [&report(&state, "c", 1)], "of its new life");
}

#[test]
fn a_host_that_has_just_joined_has_the_whole_timeout_for_its_first_report() {
    let mut state = cluster(&["a", "b", "c"]);
    let mut roll = Roll::new(at(0));
    wait(&mut roll, &state, 0, 9_000, &["a", "b"]);
    let lost = down(&state, "c");
    take(&mut state, lost);
    wait(&mut roll, &state, 9_250, 60_000, &["a", "b"]);
    for name in ["c", "d"] {
        take(&mut state, Command::JoinHost { host: host(name), facts: HostFacts::default() });
    }
    assert_eq!(wait(&mut roll, &state, 60_250, 68_000, &["a", "b", "d"]), Verdict::default());
    assert_eq!(wait(&mut roll, &state, 68_250, 68_250, &["a", "b", "d"]).commands, [down(&state, "c")]);
}

#[test]
fn a_new_primary_waits_a_whole_timeout_for_hosts_it_never_heard() {
    let state = cluster(&["a", "b", "c"]);
    let mut roll = Roll::new(at(100_000));
    assert_eq!(wait(&mut roll, &state, 100_000, 107_750, &["a", "b"]), Verdict::default());
    assert_eq!(wait(&mut roll, &state, 108_000, 108_000, &["a", "b"]).commands, [down(&state, "c")]);
}

#[test]
fn only_reports_from_before_a_round_of_a_host_that_is_up_are_confirmed() {
    let mut state = cluster(&["a", "b", "c"]);
    let mut roll = Roll::new(at(0));
    let old = report(&state, "b", 4);
    take(&mut state, Command::JoinHost { host: host("b"), facts: HostFacts::default() });
    let lost = down(&state, "c");
    take(&mut state, lost);
    for report in [report(&state, "a", 1), report(&state, "a", 2), old, report(&state, "c", 1)] {
        roll.report(report, at(1));
    }
    let round = roll.begin_round();
    roll.report(report(&state, "a", 3), at(2));
    let confirmed = roll.confirm(round, &state);
    assert_eq!(confirmed, [Confirm { report: report(&state, "a", 2), hold: Duration::from_secs(5) }]);
    let round = roll.begin_round();
    assert_eq!(roll.confirm(round, &state)[0].report.seq, 3);
    assert!(roll.begin_round().is_empty());
}

#[test]
fn when_many_are_silent_at_once_none_is_declared_down_but_by_hand() {
    let state = cluster(&["a", "b", "c", "d"]);
    let mut roll = Roll::new(at(0));
    let verdict = wait(&mut roll, &state, 0, 30_000, &["a", "b"]);
    assert_eq!(verdict, Verdict { commands: vec![], brake: [host("c"), host("d")].into() });
    roll.give_up(host("d"));
    let verdict = wait(&mut roll, &state, 30_250, 30_250, &["a", "b"]);
    assert_eq!(verdict.commands, [down(&state, "d")]);
    assert!(!verdict.brake.is_empty());
    // One is back: the loss is bearable again. What was begun by hand is ended.
    let verdict = wait(&mut roll, &state, 30_500, 30_500, &["a", "b", "d"]);
    assert_eq!(verdict.commands, [down(&state, "c"), down(&state, "d")]);
}

#[test]
fn a_host_that_was_given_up_by_hand_and_is_heard_is_so_no_more() {
    let state = cluster(&["a", "b", "c", "d"]);
    let mut roll = Roll::new(at(0));
    wait(&mut roll, &state, 0, 3_000, &["a", "b"]);
    roll.give_up(host("d"));
    wait(&mut roll, &state, 3_250, 3_250, &["a", "b", "d"]);
    // The next silence is another one.
    let verdict = wait(&mut roll, &state, 3_500, 40_000, &["a", "b"]);
    assert_eq!(verdict, Verdict { commands: vec![], brake: [host("c"), host("d")].into() });
}

#[test]
fn without_a_quorum_nobody_is_given_up_and_silent_time_does_not_count() {
    let state = cluster(&["a", "b", "c"]);
    let mut roll = Roll::new(at(0));
    wait(&mut roll, &state, 0, 2_000, &["a", "b", "c"]);
    for ms in (2_250..=60_000).step_by(250) {
        assert_eq!(roll.tick(&state, false, at(ms)), None);
    }
    assert_eq!(wait(&mut roll, &state, 60_250, 68_000, &["a", "b"]), Verdict::default());
    let verdict = wait(&mut roll, &state, 68_250, 68_250, &["a", "b"]);
    assert_eq!(verdict.commands, [down(&state, "c")], "with one it goes on from there");
}

#[test]
fn what_the_primary_slept_through_is_nobodys_fault() {
    let state = cluster(&["a", "b", "c"]);
    let mut roll = Roll::new(at(0));
    wait(&mut roll, &state, 0, 7_000, &["a", "b"]);
    assert_eq!(roll.tick(&state, true, at(60_000)), Some(Verdict::default()), "it slept for 53 s");
    assert_eq!(wait(&mut roll, &state, 60_250, 60_750, &["a", "b"]).commands, []);
    assert_eq!(wait(&mut roll, &state, 61_000, 61_000, &["a", "b"]).commands, [down(&state, "c")]);
}

#[test]
fn shorter_settings_are_settled_when_the_older_ones_have_passed() {
    let mut state = cluster(&["a"]);
    let short = Settings {
        fence_after: Duration::from_secs(2),
        fence_kill: Duration::from_secs(1),
        host_timeout: Duration::from_secs(4),
        max_lost: None,
    };
    take(&mut state, Command::Settings { settings: short });
    let since = state.pending.unwrap().since;
    let mut roll = Roll::new(at(0));
    assert_eq!(wait(&mut roll, &state, 0, 7_750, &["a"]), Verdict::default());
    assert_eq!(wait(&mut roll, &state, 8_000, 8_000, &["a"]).commands, [Command::Settle { since }]);
    let round = roll.begin_round();
    assert_eq!(
        roll.confirm(round, &state)[0].hold,
        Duration::from_secs(2),
        "the shorter hold counts at once"
    );
}
