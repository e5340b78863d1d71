//! The laws of the plan through any history of any cluster.

use super::*;

fn any_process() -> impl Strategy<Value = String> {
    let population =
        prop_oneof![(0..6u32).prop_map(|n| format!("count = {n}")), Just("per_host = true".to_owned())];
    let rest = [
        "",
        "ports = { p7000 = \"udp\" }",
        "placement = { labels = { region = \"eu\" } }",
        "placement = { needs = { slots = 3 } }",
        "placement = { needs = { slots = 7 }, strategy = \"pack\" }",
        "placement = { max_per_host = 2 }",
        "placement = { max_per_host = 1, strategy = \"pack\" }",
    ];
    (population, 0..rest.len(), any::<bool>()).prop_map(move |(population, which, exclusive)| {
        let partition = if exclusive { "on_partition = \"stop\"" } else { "" };
        format!("{population}\n{}\n{partition}", rest[which])
    })
}

pub(in crate::plan) fn any_spec() -> impl Strategy<Value = String> {
    proptest::collection::vec(any_process(), 1..4).prop_map(|all| {
        let one = |(n, lines): (usize, &String)| format!("[process.p{n}]\ncommand = [\"/p\"]\n{lines}\n");
        all.iter().enumerate().map(one).collect()
    })
}

/// Name, labelled, slots, up, drained.
pub(in crate::plan) type AnyHost = (u8, bool, u64, bool, bool);

pub(in crate::plan) fn any_host() -> impl Strategy<Value = AnyHost> {
    (0..4u8, any::<bool>(), 0..20u64, proptest::bool::weighted(0.8), proptest::bool::weighted(0.2))
}

pub(in crate::plan) fn take_host(state: &mut State, (name, labelled, slots, up, drained): AnyHost) {
    let name = format!("h{name}");
    if let Some(known) = state.hosts.get_mut(&host(&name)) {
        known.up = true;
    }
    state.join_with(&name, |facts| {
        facts.capacity.insert("slots".to_owned(), slots);
        if labelled {
            facts.labels.insert("region".to_owned(), "eu".to_owned());
        }
    });
    let known = state.hosts.get_mut(&host(&name)).unwrap();
    (known.up, known.drained) = (up, drained);
}

/// The laws look for themselves; this looks at the laws.
#[test]
fn each_law_sees_what_breaks_it() {
    let broken = |lines: &str, change: &dyn Fn(&mut State)| {
        let mut state = State::default();
        state.declare(&zone(lines));
        for name in ["a", "b"] {
            state.join_with(name, |facts| {
                facts.capacity.insert("slots".to_owned(), 10);
                facts.labels.insert("region".to_owned(), "eu".to_owned());
            });
        }
        state.plan_out();
        change(&mut state);
        laws::violations(&state).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let together = |state: &mut State| {
        for number in 0..2 {
            state.placements.get_mut(&id(&format!("zone.{number}"))).unwrap().host = host("a");
        }
    };
    let unfit = "nothing is placed on a drained or unfit host: zone.0";
    let bounds = "no host carries more than it may:";
    let drain = |state: &mut State| state.hosts.get_mut(&host("a")).unwrap().drained = true;
    let relabel = |state: &mut State| state.hosts.get_mut(&host("a")).unwrap().facts.labels.clear();
    let ghost = |state: &mut State| state.placements.get_mut(&id("zone.0")).unwrap().host = host("ghost");
    for (lines, change, law) in [
        ("count = 2", &drain as &dyn Fn(&mut State), unfit),
        ("count = 2\nplacement = { labels = { region = \"eu\" } }", &relabel, unfit),
        ("count = 2", &ghost, unfit),
        ("count = 2\nplacement = { needs = { slots = 6 } }", &together, bounds),
        ("count = 2\nplacement = { max_per_host = 1 }", &together, bounds),
        (
            "count = 2\nports = { p7777 = \"udp\" }",
            &together,
            "no two instances of a host have one fixed port:",
        ),
    ] {
        assert_eq!(broken(lines, &|_| {}), "", "{lines}");
        let found = broken(lines, change);
        assert!(found.starts_with(law), "{lines}: {found:?}, not {law:?}");
    }
}

fn check(state: &State) {
    let mut slots: BTreeMap<&HostName, u64> = BTreeMap::new();
    let mut ports: BTreeMap<(&HostName, Protocol, u16), &InstanceId> = BTreeMap::new();
    let mut own: BTreeMap<(&HostName, &ProcessName), u32> = BTreeMap::new();
    for (id, placement) in &state.placements {
        assert!(state.wants(id), "{id} is placed and not wanted");
        let (host, process) = (&state.hosts[&placement.host], &state.spec.processes[&id.process]);
        assert!(host.up && !host.drained, "{id} is on a host that is down or drained");
        let labels = &process.placement.labels;
        assert!(labels.iter().all(|(k, v)| host.facts.labels.get(k) == Some(v)), "{id} lacks a label");
        *slots.entry(&placement.host).or_default() += process.placement.needs.get("slots").unwrap_or(&0);
        *own.entry((&placement.host, &id.process)).or_default() += 1;
        for port in process.ports.values() {
            let Some(fixed) = port.fixed else { continue };
            let other = ports.insert((&placement.host, port.protocol, fixed), id);
            assert_eq!(other, None, "{id} shares port {fixed}");
        }
    }
    for (host, used) in slots {
        let needed = state.hosts[host].facts.capacity["slots"];
        assert!(used <= needed, "{used} of {needed} on {host}");
    }
    for ((host, name), count) in own {
        let max = state.spec.processes[name].placement.max_per_host;
        assert!(max.is_none_or(|max| count <= max), "{count} of {name} on {host}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever dies or is rolled again meanwhile: a rolling restart takes down no more than it may, and ends.
    #[test]
    fn a_rolling_restart_keeps_its_budget_and_ends_through_any_history(
        count in 1..9usize,
        budget in 1..4usize,
        steps in proptest::collection::vec((any::<bool>(), proptest::option::of(0..9u64)), 1..12),
    ) {
        let text = zone(&format!("count = {count}\nupdate = {{ max_unavailable = {budget} }}"));
        let mut state = cluster(&text, &["a", "b"]);
        state.plan_out();
        state.run_all(None);
        state.roll_out("zone");
        for (again, dies) in steps {
            if again {
                state.roll_out("zone");
            }
            if let Some(number) = dies {
                state.directory.remove(&id(&format!("zone.{number}")));
                state.basis += 1;
            }
            let down = state.unready();
            state.plan_out();
            prop_assert!(state.unready() <= budget.max(down), "{} of {budget} are down", state.unready());
            state.run_all(None);
        }
        let wanted = state.hash_of(&"zone".parse().unwrap()).unwrap();
        for _ in 0..count {
            state.plan_out();
            state.run_all(None);
        }
        prop_assert!(state.directory.values().all(|entry| entry.hash == wanted && entry.ready.is_some()));
        prop_assert_eq!(state.plan_out().commands, []);
    }

    #[test]
    fn the_laws_hold_through_any_history(
        steps in proptest::collection::vec((any_spec(), proptest::collection::vec(any_host(), 0..4), any::<bool>()), 1..5)
    ) {
        let mut state = State::default();
        let mut planner = Planner::default();
        for (text, hosts, redeclare) in steps {
            if redeclare || state.revision == 0 {
                state.declare(&text);
            }
            hosts.into_iter().for_each(|host| take_host(&mut state, host));
            let (before, claims) = (state.placements.clone(), state.claims.clone());
            let fresh = plan(&state, &Liveness::default(), 0);
            prop_assert_eq!(planner.plan(&state, &Liveness::default(), 0), fresh, "what it remembers is right");
            let planned = state.plan_out();
            check(&state);
            // Everybody is somewhere or it is said why not.
            for (name, process) in &state.spec.processes {
                for id in instances(&state, name, process) {
                    prop_assert!(state.placements.contains_key(&id) != planned.unplaced.contains_key(&id), "{}", id);
                }
            }
            // What is exclusive stays where it is claimed: here nobody gives anything back.
            for (id, claim) in &claims {
                let now = state.placements.get(id).map(|now| &now.host);
                prop_assert!(now.is_none_or(|now| *now == claim.host), "{} is claimed by {} and on {:?}", id, claim.host, now);
            }
            // Who moved could not stay.
            for (id, old) in &before {
                let Some(now) = state.placements.get(id).filter(|now| now.host != old.host) else { continue };
                let host = &state.hosts[&old.host];
                let process = &state.spec.processes[&id.process];
                let labels = process.placement.labels.iter().all(|(k, v)| host.facts.labels.get(k) == Some(v));
                let bound = process.placement.max_per_host.is_some()
                    || !process.placement.needs.is_empty()
                    || process.ports.values().any(|port| port.fixed.is_some());
                prop_assert!(!host.up || host.drained || !labels || bound, "{} moved from {} to {}", id, old.host, now.host);
            }
        }
    }
}
