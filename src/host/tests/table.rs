//! Every phase against every happening: nothing panics, what means nothing changes nothing, and what is
//! true in every phase stays true.

use super::*;

const NATIVE: &str = "heartbeat = { mode = \"native\", interval = \"1s\", timeout = \"5s\" }";

/// A rig in each phase, some in more than one way.
fn phases() -> Vec<(&'static str, Rig)> {
    let waiting = || {
        let mut rig = Rig::idle(NATIVE);
        rig.want.waits_for = Some("login".parse().unwrap());
        rig.heed();
        rig
    };
    let after = |mut rig: Rig, happenings: Vec<Happening>| {
        for happening in happenings {
            rig.on(happening);
        }
        rig
    };
    let connected = || after(Rig::ready(NATIVE), vec![Happening::Connected(true)]);
    let mut draining = connected();
    draining.update(&format!("{NATIVE}\nbuild = \"2\""));
    let mut paused = Rig::ready(NATIVE);
    paused.pause(true);
    let mut removed = Rig::ready(NATIVE);
    removed.remove();
    let mut failed =
        Rig::ordered(&format!("{NATIVE}\nrestart = {{ give_up = {{ failures = 1, within = \"1h\" }} }}"));
    failed.on(Happening::SpawnFailed("no".to_owned()));
    failed.wait(s(1));
    let crash = || Happening::Gone { end: CRASHED, fenced: false };
    vec![
        ("waiting", waiting()),
        ("starting", Rig::ordered(NATIVE)),
        ("starting", Rig::started(NATIVE)),
        ("ready", Rig::ready(NATIVE)),
        ("ready", connected()),
        ("draining", after(connected(), vec![Happening::Draining])),
        ("draining", draining),
        ("stopping", after(Rig::ready(NATIVE), vec![Happening::Restart])),
        ("stopping", after(Rig::ready(NATIVE), vec![Happening::Stopping])),
        ("stopping", after(Rig::ready(NATIVE), vec![Happening::Trigger])),
        ("stopping", after(Rig::ready(NATIVE), vec![Happening::Exited(CRASHED)])),
        ("stopping", removed),
        ("backoff", after(Rig::ready(NATIVE), vec![crash(), crash()])),
        ("failed", after(failed, vec![Happening::SpawnFailed("no".to_owned())])),
        ("paused", after(paused, vec![crash()])),
        (
            "stopped",
            after(Rig::ready(&format!("{NATIVE}\nrestart = {{ policy = \"never\" }}")), vec![crash()]),
        ),
    ]
}

fn happenings(rig: &Rig) -> Vec<Happening> {
    let paused = Want { paused: true, ..rig.want.clone() };
    let renewed = Want { generation: rig.want.generation + 1, waits_for: None, ..rig.want.clone() };
    vec![
        Happening::Wanted(Some(rig.want.clone())),
        Happening::Wanted(Some(paused)),
        Happening::Wanted(Some(renewed)),
        Happening::Wanted(None),
        Happening::Spawned { pid: 5, ports: Ports::new() },
        Happening::SpawnFailed("no".to_owned()),
        Happening::SpawnStuck,
        Happening::Exited(End::Code(0)),
        Happening::Gone { end: End::Unknown, fenced: false },
        Happening::Gone { end: KILLED, fenced: true },
        Happening::Ready,
        Happening::Beat,
        Happening::Draining,
        Happening::Stopping,
        Happening::Trigger,
        Happening::Extend(Duration::MAX),
        Happening::Timeout(Duration::MAX),
        Happening::Timeout(Duration::ZERO),
        Happening::MainPid(7),
        Happening::MainPid(-7),
        Happening::Connected(true),
        Happening::Connected(false),
        Happening::Status(Default::default()),
        Happening::Text("busy".to_owned()),
        Happening::Probed { asked: 1, answer: Answer::Alive, status: Default::default() },
        Happening::Probed { asked: u64::MAX, answer: Answer::Refused, status: Default::default() },
        Happening::Restart,
        Happening::Announced,
        Happening::Stalled(Duration::MAX),
        Happening::Tick,
    ]
}

#[test]
fn the_rig_reaches_every_phase() {
    let mut reached: Vec<&str> = Vec::new();
    for (name, rig) in phases() {
        assert_eq!(rig.phase().as_str(), name);
        reached.push(name);
    }
    for name in Phase::ALL {
        assert!(reached.contains(&name), "no rig is {name}");
    }
}

/// True of an instance whatever happened to it.
fn sound(instance: &Instance) -> bool {
    match instance.phase {
        Phase::Starting { .. } | Phase::Ready | Phase::Draining { .. } | Phase::Stopping { .. } => {
            instance.run.is_some()
        }
        Phase::Waiting | Phase::Backoff { .. } | Phase::Failed | Phase::Paused => {
            instance.run.is_none() && instance.want.is_some()
        }
        Phase::Stopped => instance.run.is_none(),
    }
}

#[test]
fn every_phase_bears_everything_that_can_happen() {
    let all = happenings(&phases()[0].1).len();
    for case in 0..phases().len() {
        for which in 0..all {
            let (name, mut rig) = phases().swap_remove(case);
            let happening = happenings(&rig).swap_remove(which);
            let run = rig.instance().run.as_ref().map(|run| run.id);
            let lives = run.is_some();
            let over = matches!(happening, Happening::Gone { .. } | Happening::SpawnFailed(_));
            let word = format!("{name} ({case}) and {happening:?}");
            let actions = rig.on(happening);
            let spawns = actions.iter().filter(|a| matches!(a, Action::Spawn { .. })).count();
            assert!(spawns == 0 || !lives || over, "{word}: a second run beside {run:?}: {actions:?}");
            assert!(spawns <= 1, "{word}: {actions:?}");
            let acked = actions.iter().any(|a| matches!(a, Action::Acknowledge { .. }));
            assert_eq!(acked, lives && over, "{word}: {actions:?}");
            if let Some(instance) = rig.host.instance(&zone()) {
                assert!(sound(instance), "{word}: {instance:?}");
                // And time goes on from there.
                rig.wait(s(3));
                assert!(sound(rig.instance()), "{word}: {:?}", rig.instance());
            }
        }
    }
}

#[test]
fn without_a_run_what_runs_say_changes_nothing() {
    for (name, mut rig) in phases() {
        if rig.instance().run.is_some() {
            continue;
        }
        let said = [
            Happening::Ready,
            Happening::Beat,
            Happening::Draining,
            Happening::Stopping,
            Happening::Trigger,
            Happening::Extend(s(5)),
            Happening::MainPid(7),
            Happening::Connected(true),
            Happening::Exited(CRASHED),
            Happening::Gone { end: CRASHED, fenced: false },
            Happening::SpawnFailed("no".to_owned()),
            alive(1),
        ];
        for happening in said {
            let before = rig.phase();
            assert_eq!(rig.on(happening.clone()), [], "{name} and {happening:?}");
            assert_eq!(rig.phase(), before, "{name} and {happening:?}");
        }
    }
}

#[test]
fn a_pause_ends_every_phase_and_only_start_ends_the_pause() {
    for (name, mut rig) in phases() {
        rig.want.paused = true;
        rig.host.desire(BTreeMap::from([(zone(), rig.want.clone())]), rig.now());
        rig.wait(s(4 * 3600));
        if rig.instance().run.is_some() {
            rig.gone(End::Code(0));
        }
        assert_eq!(rig.phase(), Phase::Paused, "{name}");
        assert_eq!(orders(rig.on(Happening::Restart)), [], "{name}");
        assert_eq!(orders(rig.wait(s(1000))), [], "{name}");
        rig.want.waits_for = None;
        let actions = orders(rig.pause(false));
        assert!(matches!(actions[..], [Action::Spawn { .. }]), "{name}: {actions:?}");
    }
}

#[test]
fn a_removal_ends_every_phase_in_a_release() {
    for (name, mut rig) in phases() {
        let mut actions = rig.remove();
        if rig.host.instance(&zone()).is_some() {
            actions.extend(rig.wait(s(4 * 3600)));
            actions.extend(rig.gone(End::Code(0)));
        }
        let releases = actions.iter().filter(|a| matches!(a, Action::Release { .. })).count();
        assert_eq!(releases, 1, "{name}: {actions:?}");
        assert!(rig.host.instance(&zone()).is_none(), "{name}");
        assert_eq!((rig.host.next_due(), rig.host.inventory().len()), (None, 0), "{name}");
    }
}
