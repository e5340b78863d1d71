//! What counts as a hang, when, and what a stall of the agent or a changed spec makes of it.

use super::stories::{NATIVE, NOTIFY, TCP};
use super::*;

#[test]
fn silence_is_a_hang_by_every_sign_and_on_time() {
    for lines in [NATIVE, NOTIFY] {
        let mut rig = Rig::ready(lines);
        rig.on(Happening::Beat);
        assert_eq!(orders(rig.wait(ms(4_999))), []);
        let actions = rig.wait(ms(1));
        assert!(actions.contains(&Action::Measure(Measure::HangKill(Duration::ZERO))), "{actions:?}");
        assert_eq!(told(&actions), [EventKind::Unready]);
        assert_eq!(orders(actions), [kill(1)]);
        let follows = rig.gone(KILLED);
        assert!(told(&follows).contains(&stopped(KILLED, false)), "{follows:?}");
        assert_eq!(orders(follows), [ack(1), spawn(2)]);
        assert_eq!(rig.instance().last_exit.as_ref().unwrap().cause, Cause::Hang);
    }
    let mut rig = Rig::ready(TCP);
    let started = rig.at;
    let actions = rig.wait(s(5));
    assert_eq!(orders(actions.clone()).last(), Some(&kill(1)), "{actions:?}");
    assert_eq!(rig.at, started.after(s(5)));
}

#[test]
fn a_silent_native_run_is_asked_for_a_beat_once_a_silence_at_half_of_its_timeout() {
    let ping = || Action::Ping { instance: zone() };
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Connected(true));
    assert_eq!(orders(rig.wait(s(10))), [], "it has never beaten, so nothing waits for it to");
    rig.on(Happening::Beat);
    assert_eq!(orders(rig.wait(ms(2_499))), []);
    assert_eq!(orders(rig.wait(ms(1))), [ping()]);
    assert_eq!(orders(rig.wait(ms(2_000))), [], "asked once");
    rig.on(Happening::Beat);
    assert_eq!(orders(rig.wait(ms(2_500))), [ping()], "another silence");
    assert_eq!(orders(rig.wait(ms(2_500))), [kill(1)], "a ping is no beat");

    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Beat);
    assert_eq!(orders(rig.wait(ms(4_999))), [], "nobody is connected who could hear it");
    let mut rig = Rig::ready(NOTIFY);
    rig.on(Happening::Connected(true));
    rig.on(Happening::Beat);
    assert_eq!(orders(rig.wait(ms(4_999))), [], "sd_notify has no ping");
}

#[test]
fn ready_alone_never_arms_a_timeout() {
    for lines in [NATIVE, NOTIFY] {
        let mut rig = Rig::ready(lines);
        let actions = rig.wait(s(100_000));
        assert_eq!(orders(actions.clone()), [], "killed without ever having beaten");
        let unarmed = |a: &&Action| matches!(a, Action::Narrate(Occurrence { story: Story::Unarmed, .. }));
        assert_eq!(actions.iter().filter(unarmed).count(), 1, "people are told once: {actions:?}");
    }
}

#[test]
fn answers_keep_a_probed_run_alive_and_one_lost_answer_is_no_hang() {
    let mut rig = Rig::ready(TCP);
    for round in 0..50 {
        let asked = rig.wait_for_question();
        if round % 2 == 0 {
            rig.on(alive(asked));
        } else {
            let answer = Answer::Failed("nothing".to_owned());
            rig.on(Happening::Probed { asked, answer, status: Default::default() });
        }
        assert_eq!(rig.phase(), Phase::Ready, "round {round}");
    }
}

#[test]
fn an_aborted_run_has_its_time_for_a_core() {
    let beat = "heartbeat = { mode = \"native\", interval = \"1s\", timeout = \"5s\", on_hang = \"abort\", abort_timeout = \"20s\" }";
    let mut rig = Rig::ready(beat);
    rig.on(Happening::Beat);
    assert_eq!(orders(rig.wait(s(5))), [Action::Abort { run: RunId(1) }]);
    assert_eq!(orders(rig.on(Happening::Connected(true))), [], "a hung run is not asked");
    assert_eq!(orders(rig.wait(ms(19_999))), []);
    assert_eq!(orders(rig.wait(ms(1))), [kill(1)]);
    let abort = End::Signal { signal: 6, core: true };
    assert_eq!(orders(rig.gone(abort)), [ack(1), spawn(2)]);
    let last = rig.instance().last_exit.clone().unwrap();
    assert_eq!((last.cause, last.end), (Cause::Hang, abort));
    assert!(last.detail.unwrap().starts_with("hang: no heartbeat for 5"), "the finding is kept");
}

#[test]
fn trigger_is_a_hang_at_once() {
    let mut rig = Rig::ready(NOTIFY);
    assert_eq!(orders(rig.on(Happening::Trigger)), [kill(1)]);
}

#[test]
fn a_process_may_change_its_own_timeout_and_a_new_agent_is_told() {
    let mut rig = Rig::ready(NOTIFY);
    rig.on(Happening::Beat);
    let remember = Action::Remember { instance: zone(), run: RunId(1) };
    assert_eq!(rig.on(Happening::Timeout(s(60))), [remember]);
    assert_eq!(rig.on(Happening::Timeout(s(60))), [], "said again, it is nothing new");
    assert_eq!(rig.instance().note().unwrap().own_timeout_ms, Some(60_000));
    assert_eq!(orders(rig.wait(ms(59_999))), []);
    assert_eq!(orders(rig.wait(ms(1))), [kill(1)]);
    let mut rig = Rig::ready(NOTIFY);
    rig.on(Happening::Beat);
    rig.on(Happening::Timeout(Duration::ZERO));
    assert_eq!(orders(rig.wait(s(1000))), [], "zero switches the watchdog off");
}

#[test]
fn a_changed_timeout_applies_to_the_living_run() {
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Beat);
    assert_eq!(orders(rig.update(&NATIVE.replace("\"5s\"", "\"50s\""))), [], "no new run is needed");
    assert_eq!(orders(rig.wait(ms(49_999))), []);
    assert_eq!(orders(rig.wait(ms(1))), [kill(1)]);
}

/// How long the instance was without a run, as the metrics are told.
fn restarted(actions: &[Action]) -> Option<(Cause, Duration)> {
    actions.iter().find_map(|action| match action {
        Action::Measure(Measure::Restarted { cause, took }) => Some((*cause, *took)),
        _ => None,
    })
}

#[test]
fn a_restart_takes_from_the_end_or_the_hangs_deadline_to_the_new_program() {
    let mut rig = Rig::ready(NATIVE);
    assert_eq!(restarted(&rig.gone(CRASHED)), None, "the new run is ordered, not there");
    rig.wait(ms(7));
    assert_eq!(restarted(&rig.spawned()), Some((Cause::Signal, ms(7))));
    rig.make_ready();
    rig.on(Happening::Beat);
    rig.wait(s(5));
    rig.wait(ms(2));
    rig.gone(KILLED);
    rig.wait(s(1));
    let Some((cause, took)) = restarted(&rig.spawned()) else { panic!("nothing was measured") };
    assert_eq!((cause, took >= ms(1_002)), (Cause::Hang, true), "{took:?}");
}

#[test]
fn a_run_that_was_told_its_watchdog_keeps_it_when_the_spec_asks_for_less() {
    let mut rig = Rig::ready(NOTIFY);
    rig.on(Happening::Beat);
    rig.update(&NOTIFY.replace("\"5s\"", "\"2s\""));
    assert_eq!(orders(rig.wait(ms(4_999))), [], "it beats as WATCHDOG_USEC told it when it began");
    assert_eq!(orders(rig.wait(ms(1))), [kill(1)]);
}

#[test]
fn limits_and_log_bounds_change_under_a_living_run() {
    let mut rig = Rig::ready(NATIVE);
    let (instance, run) = (zone(), RunId(1));
    let limited = format!("{NATIVE}\nlimits = {{ pids = 64 }}");
    let actions = rig.update(&limited);
    assert!(actions.contains(&Action::Limit { instance: instance.clone(), run }), "{actions:?}");
    let actions = rig.update(&format!("{limited}\nlogs = {{ size = \"1MiB\" }}"));
    assert!(actions.contains(&Action::Logs { instance: instance.clone(), run }), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::Exclusive { .. })), "{actions:?}");
    let actions = rig.update(&format!("{limited}\non_partition = \"stop\""));
    assert!(actions.contains(&Action::Exclusive { instance, run }), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::Limit { .. } | Action::Spawn { .. })));
}

#[test]
fn a_changed_heartbeat_is_watched_in_the_living_run() {
    let ready = "ports = { game = \"tcp\" }\nready = { mode = \"native\" }";
    let tcp = format!("{ready}\nheartbeat = {{ mode = \"tcp\", interval = \"1s\", timeout = \"5s\" }}");
    let native = format!("{ready}\nheartbeat = {{ mode = \"native\", interval = \"1s\", timeout = \"5s\" }}");
    let mut rig = Rig::ready(&native);
    rig.on(Happening::Beat);
    rig.update(&tcp);
    let asked = rig.wait_for_question();
    rig.on(alive(asked));
    rig.update(&native);
    assert_eq!(orders(rig.wait(s(1000))), [], "it has never beaten by itself");
    rig.on(Happening::Beat);
    assert_eq!(orders(rig.wait(s(5))), [kill(1)]);
}

#[test]
fn a_stall_of_the_agent_puts_off_what_waits_for_a_sign_of_the_process() {
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Beat);
    rig.wait(s(4));
    rig.stall(s(30));
    assert_eq!(orders(rig.wait(ms(999))), []);
    assert_eq!(orders(rig.wait(ms(1))), [kill(1)]);

    let mut rig = Rig::started(NATIVE);
    rig.stall(s(100));
    assert_eq!(orders(rig.wait(ms(29_999))), []);
    assert_eq!(orders(rig.wait(ms(1))), [kill(1)]);

    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Beat);
    rig.on(Happening::Extend(s(60)));
    rig.wait(s(50));
    rig.stall(s(30));
    assert_eq!(orders(rig.wait(ms(9_999))), [], "what was granted is moved, too");
    assert_eq!(orders(rig.wait(ms(1))), [kill(1)]);

    // It may have said that it drains.
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Connected(true));
    rig.update("heartbeat = { mode = \"none\" }\nstop = { timeout = \"10s\" }\ndrain = { timeout = \"1h\" }\nbuild = \"2\"");
    rig.stall(s(30));
    assert_eq!(orders(rig.wait(ms(9_999))), []);
    assert_eq!(orders(rig.wait(ms(1))), [ask(1, StopReason::Update, s(10), Some(15))]);
}

#[test]
fn an_agent_that_stalls_again_and_again_puts_off_no_end() {
    // Each: how it comes to end, and what follows at a deadline that is 10 s off.
    let stop = |rig: &mut Rig| drop(rig.on(Happening::Restart));
    let says_so = |rig: &mut Rig| drop(rig.on(Happening::Stopping));
    let abort = |rig: &mut Rig| drop(rig.on(Happening::Trigger));
    let drain = |rig: &mut Rig| drop(rig.on(Happening::Draining));
    let lines = "ready = { mode = \"native\" }
heartbeat = { mode = \"native\", timeout = \"5s\", on_hang = \"abort\", abort_timeout = \"10s\" }
stop = { timeout = \"10s\" }
drain = { timeout = \"10s\" }";
    type End<'a> = (&'a str, &'a dyn Fn(&mut Rig), Action);
    let ends: [End<'_>; 4] = [
        ("stop", &stop, kill(1)),
        ("its own wish", &says_so, kill(1)),
        ("abort", &abort, kill(1)),
        ("drain", &drain, ask(1, StopReason::DrainTimeout, s(10), Some(15))),
    ];
    for (name, end, follows) in ends {
        let mut rig = Rig::ready(lines);
        end(&mut rig);
        for _ in 0..19 {
            rig.stall(ms(500));
            assert_eq!(orders(rig.wait(ms(0))), [], "{name}");
        }
        rig.stall(ms(500));
        assert_eq!(orders(rig.wait(ms(0))), [follows], "{name}");
    }
}

#[test]
fn a_hung_run_gets_no_more_time_to_leave_its_core_than_the_file_says() {
    let lines = "ready = { mode = \"native\" }
heartbeat = { mode = \"native\", timeout = \"5s\", on_hang = \"abort\", abort_timeout = \"10s\" }";
    let mut rig = Rig::ready(lines);
    rig.on(Happening::Trigger);
    rig.on(Happening::Extend(s(60)));
    assert_eq!(orders(rig.wait(ms(9_999))), []);
    assert_eq!(orders(rig.wait(ms(1))), [kill(1)]);
}

#[test]
fn neither_a_hang_nor_a_restart_waits_behind_thousands_of_back_offs_that_are_over() {
    let mut rig = Rig::ready(NATIVE);
    rig.on(Happening::Beat);
    let crowd = (0..3_000).map(|n| (format!("arena.{n}").parse().unwrap(), rig.want.clone()));
    let wants = crowd.chain([(zone(), rig.want.clone())]).collect();
    let now = rig.now();
    for action in rig.host.desire(wants, now) {
        let Action::Spawn { run, .. } = action else { panic!("{action:?}") };
        rig.host.on_run(run, Happening::SpawnFailed("no port".to_owned()), now);
    }
    rig.at = rig.at.after(s(5));
    let actions = rig.host.tick(rig.now());
    assert!(actions.contains(&kill(1)), "{} others came first", actions.len());
    let behind = |rig: &Rig| rig.host.next_due() <= Some(rig.at);
    assert!(behind(&rig), "all of them at once are too many");
    rig.gone(KILLED);
    let again = rig.run();
    rig.spawned();
    rig.gone(KILLED);
    assert!(matches!(rig.phase(), Phase::Backoff { .. }), "{:?}", rig.phase());
    rig.at = rig.at.after(ms(100));
    rig.host.tick(rig.now());
    assert!(rig.run() > again && behind(&rig), "others came first");
}
